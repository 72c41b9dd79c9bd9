// DingTalk's SDK for Node, against a sandbox: prints each event it gets, and takes all but the first delivery
// of an event of the type "later".
//
//   CLIENT_SECRET=... node node_sdk.mjs SANDBOX_URL CLIENT_ID
import axios from "axios";
import { DWClient, EventAck } from "dingtalk-stream";

const [url, clientId] = process.argv.slice(2);
const clientSecret = process.env.CLIENT_SECRET;

// The SDK knows one host only.
axios.interceptors.request.use((request) => {
  request.url = request.url.replace("https://api.dingtalk.com", url);
  request.proxy = false;
  return request;
});

const seen = new Set();
const client = new DWClient({ clientId, clientSecret, keepAlive: true });
client.registerAllEventListener((message) => {
  const { eventType, eventId } = message.headers;
  const later = eventType === "later" && !seen.has(eventId);
  seen.add(eventId);
  console.log(JSON.stringify({ eventType, eventId, later, data: JSON.parse(message.data) }));
  return { status: later ? EventAck.LATER : EventAck.SUCCESS };
});
await client.connect();
