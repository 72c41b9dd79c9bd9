"""The conference calls of DingTalk's official SDK for which the sandbox has only a sample response."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# A row a call: method, path, and the fields of its response; a line that begins with a space continues it.
# ``~`` is a meeting. ``#`` marks a number, ``?`` a truth value, ``[]`` a list; other fields are texts.
_TABLE: Final = """
POST customShortLinks: result{customShortLink}
POST scheduleConferences: phones[], requestId, roomCode, scheduleConferenceId, url
PUT scheduleConferences: success?
POST scheduleConferences/cancel: success?
GET scheduleConferences/settings: scheduleConfSettingModel{cohostUnionIds[], confAllowedCorpId, hostUnionId,
 lockRoom#, moziConfVirtualExtraSetting{enableChat#, enableWebAnonymousJoin?, joinBeforeHost#,
 lockMediaStatusMicMute#, lockNick#, moziConfExtensionAppSettings[{autoOpenMode, clientId, coolAppCode,
 extensionAppBizData}], waitingRoom#}, muteOnJoin#, screenShareForbidden#}
PUT scheduleConferences/settings: success?
GET scheduleConferences/{scheduleConferenceId}/infos: endTime#, phones[], requestId, roomCode,
 scheduleConferenceId, startTime#, title, url
GET users/lists: memberModelMap{}, onGoingConfIdList[]
POST videoConferences/createAutoLoginUrl: loginInfo{loginUrl}, success?
POST videoConferences/enterpriseSetting/record/whiteAccount: code
GET videoConferences/histories/dataLists: list[{conferenceId, creatorId, creatorNick, deptName, endTime#,
 freeType, scene, startTime#, timeLength#, title, userCount#}], nextToken
POST videoConferences/mcus/invite: success?
PUT ~: case, code
POST ~/allMembers/mute: success?
GET ~/cloudRecords/getTexts: hasMore?, paragraphList[{endTime#, nextTtoken#, nickName, paragraph, recordId#,
 sentenceList[{endTime#, sentence, startTime#, unionId, wordList[{endTime#, startTime#, word, wordId}]}],
 startTime#, status#, unionId}]
GET ~/cloudRecords/getVideos: videoList[{duration#, endTime#, fileSize#, mediaId, recordId, recordType#,
 regionId, startTime#, unionId}]
POST ~/cloudRecords/start: code
POST ~/cloudRecords/stop: code
GET ~/cloudRecords/videos/getPlayInfos: duration#, fileSize#, mp4FileUrl, playUrl, status#
POST ~/coHosts/set: success?
GET ~/details: list[{belongOrg, conferenceId, deviceType, duration#, joinTime#, leaveTime#, networkQuality,
 nick, role, sessionId, status, unionId, version}], nextToken
PUT ~/extInfo: case, code
GET ~/flashMinutes/document/generate: minutesDocUrl
POST ~/flashMinutes/recordPermissions: code, taskUuid
GET ~/flashMinutes/recordUrls: recordMinutesUrls[{recordMinutesUrl, taskUuid}]
GET ~/flashMinutes/summaries: flashMinutesSummary{status#, summary[{end#, headline, id#, start#, summary}]}
POST ~/focus: success?
GET ~/infos: conferenceId, creatorId, creatorNick, deptName, endTime#, freeType, scene, startTime#,
 timeLength#, title, userCount#
POST ~/lastMetricDatas/query: metricMap{}
POST ~/members/kick: success?
POST ~/members/mute: success?
POST ~/members/updateNick: success?
GET ~/metricDatas: metricDataList[{audioPlayLevel, audioRecLevel, audioRecvBitRate, audioSendBitRate,
 cameraRecvBitRate, cameraRecvFrame, cameraRecvResolutionActual, cameraSendBitRate, cameraSendFrame,
 cameraSendResolutionActual, lostRate, recvBitRate, roundTripTime, screenRecvBitRate, screenRecvFrame,
 screenRecvResolutionActual, screenSendBitRate, screenSendFrame, screenSendResolutionActual, sendBitRate,
 timestamp#}]
GET ~/minutes/audioInfos: audioList[{duration#, endTime#, fileSize#, playUrl, recordId, startTime#,
 unionId}]
GET ~/minutes/meetingResult: action[], fullSummary
POST ~/minutes/pause: code
POST ~/minutes/start: code
POST ~/minutes/summaries/query: summary{actions[{end#, id#, sentenceId#, start#, text}], autoChapters[{end#,
 headline, id#, start#, summary}], conversationalSummary[{speakerId, speakerName, summary}],
 keySentences[{end#, id#, sentenceId#, start#, text}], keywords[], paragraphSummary,
 questionsAnsweringSummary[{answer, question, sentenceIdsOfAnswer[]#, sentenceIdsOfQuestion[]#}]}
GET ~/minutes/textInfos: hasMore?, nextToken, paragraphList[{endTime#, nickName, paragraph, paragraphId#,
 recordId#, sentenceList[{endTime#, sentence, startTime#, unionId, wordList[{endTime#, startTime#, word,
 wordId}]}], startTime#, unionId}]
POST ~/streamOuts/start: failStreamMap{}, successStreamMap{}
POST ~/streamOuts/stop: code
POST ~/subtitleEvents: success?
POST ~/users/invite: success?
"""

_VALUES: Final = {"#": "1", "?": "true", "[]#": "[1]", "code": '"200"', "hasMore?": "false"}
_EMPTY: Final = ("case", "nextToken")  # nothing to say, and no further page


def _json_of(field: re.Match[str]) -> str:
    name, mark = field[1], field[2] or ""
    if field[0].endswith(("{", "[{")):
        return f'"{name}": {field[0].removeprefix(name)}'
    text = json.dumps([name] if mark == "[]" else "" if name in _EMPTY else name)
    return f'"{name}": {_VALUES.get(name + mark) or _VALUES.get(mark, text)}'


def rows() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the method, the path and a sample response of each call."""
    for row in _TABLE.replace("\n ", " ").strip().splitlines():
        call, _, fields = row.partition(": ")
        method, _, path = call.partition(" ")
        sample = json.loads("{" + re.sub(r"(\w+)(\[?\{|\[\]#?|[#?])?", _json_of, fields) + "}")
        yield method, "/v1.0/conference/" + path.replace("~", "videoConferences/{conferenceId}"), sample
