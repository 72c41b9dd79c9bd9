"""The conference calls of DingTalk's official SDK for which the sandbox has only a sample response."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# The fields of a response, and the calls that get it. ``#`` marks a number, ``?`` a truth value, ``[]`` a
# list, ``{}`` an object; other fields are texts. ``~`` is a meeting. A line that begins with a space goes on.
_TABLE: Final = """
result{customShortLink}: POST customShortLinks
phones[], requestId, roomCode, scheduleConferenceId, url: POST scheduleConferences
success?: PUT scheduleConferences | POST scheduleConferences/cancel | PUT scheduleConferences/settings |
 POST videoConferences/mcus/invite | POST ~/allMembers/mute | POST ~/coHosts/set | POST ~/focus |
 POST ~/members/kick | POST ~/members/mute | POST ~/members/updateNick | POST ~/subtitleEvents |
 POST ~/users/invite
scheduleConfSettingModel{cohostUnionIds[], confAllowedCorpId, hostUnionId, lockRoom#,
 moziConfVirtualExtraSetting{enableChat#, enableWebAnonymousJoin?, joinBeforeHost#, lockMediaStatusMicMute#,
 lockNick#, moziConfExtensionAppSettings[], waitingRoom#}, muteOnJoin#, screenShareForbidden#}:
 GET scheduleConferences/settings
endTime#, phones[], requestId, roomCode, scheduleConferenceId, startTime#, title, url:
 GET scheduleConferences/{scheduleConferenceId}/infos
memberModelMap{}, onGoingConfIdList[]: GET users/lists
loginInfo{loginUrl}, success?: POST videoConferences/createAutoLoginUrl
code: POST videoConferences/enterpriseSetting/record/whiteAccount | POST ~/cloudRecords/start |
 POST ~/cloudRecords/stop | POST ~/minutes/pause | POST ~/minutes/start | POST ~/streamOuts/stop
list[], nextToken: GET videoConferences/histories/dataLists | GET ~/details
case, code: PUT ~ | PUT ~/extInfo
hasMore?, paragraphList[]: GET ~/cloudRecords/getTexts
videoList[]: GET ~/cloudRecords/getVideos
duration#, fileSize#, mp4FileUrl, playUrl, status#: GET ~/cloudRecords/videos/getPlayInfos
minutesDocUrl: GET ~/flashMinutes/document/generate
code, taskUuid: POST ~/flashMinutes/recordPermissions
recordMinutesUrls[]: GET ~/flashMinutes/recordUrls
flashMinutesSummary{status#, summary[]}: GET ~/flashMinutes/summaries
conferenceId, creatorId, creatorNick, deptName, endTime#, freeType, scene, startTime#, timeLength#, title,
 userCount#: GET ~/infos
metricMap{}: POST ~/lastMetricDatas/query
metricDataList[]: GET ~/metricDatas
audioList[]: GET ~/minutes/audioInfos
action[], fullSummary: GET ~/minutes/meetingResult
summary{actions[], autoChapters[], conversationalSummary[], keySentences[], keywords[], paragraphSummary,
 questionsAnsweringSummary[]}: POST ~/minutes/summaries/query
hasMore?, nextToken, paragraphList[]: GET ~/minutes/textInfos
failStreamMap{}, successStreamMap{}: POST ~/streamOuts/start
"""

_VALUES: Final = {
    "#": "1",
    "?": "true",
    "[]": "[]",
    "code": '"200"',
    "case": '""',
    "nextToken": '""',
    "hasMore?": "false",
}


def _field(found: re.Match[str]) -> str:
    name, mark = found.groups("")
    value = "{" if mark == "{" else _VALUES.get(name + mark) or _VALUES.get(mark, f'"{name}"')
    return f'"{name}": {value}'


def rows() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the method, the path and a sample response of each call."""
    for row in _TABLE.replace("\n ", " ").strip().splitlines():
        fields, _, calls = row.partition(": ")
        sample = json.loads("{" + re.sub(r"(\w+)([{#?]|\[\])?", _field, fields) + "}")
        for method, _, path in (call.partition(" ") for call in calls.split(" | ")):
            yield method, "/v1.0/conference/" + path.replace("~", "videoConferences/{conferenceId}"), sample
