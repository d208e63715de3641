// Drives npm mixpanel as an application would. Reads what to do from the
// environment; prints one line of JSON a step.
const Mixpanel = require("mixpanel");

const [host, port] = process.env.HOST.split(":");
const mp = Mixpanel.init(process.env.TOKEN, { host, port: Number(port), protocol: "https", secret: process.env.SECRET });
const step = (name, call) =>
  new Promise((resolve) => {
    const done = (err) => {
      const errors = (Array.isArray(err) ? err : [err]).filter(Boolean).map((e) => e.message);
      console.log(JSON.stringify({ step: name, errors }));
      resolve();
    };
    try {
      call(done);
    } catch (e) {
      done(e);
    }
  });
const past = Math.floor(Date.now() / 1000) - 20 * 86400;

(async () => {
  if (process.env.ALIAS) {
    await step("track before", (cb) => mp.track("Before", { distinct_id: "anonymous-1" }, cb));
    await step("alias", (cb) => mp.alias("anonymous-1", "known-1", cb));
    await step("track after", (cb) => mp.track("After", { distinct_id: "known-1" }, cb));
    return;
  }
  await step("track", (cb) => mp.track("Tracked", { distinct_id: "node-user", plan: "pro+", note: "ÿ>?~" }, cb));
  await step("track_batch", (cb) => mp.track_batch([1, 2, 3].map((i) => ({ event: `Batch ${i}`, properties: { distinct_id: "node-user", i } })), cb));
  await step("import", (cb) => mp.import("Imported", past, { distinct_id: "node-user", $insert_id: "node-1" }, cb));
  await step("import again", (cb) => mp.import("Imported", past, { distinct_id: "node-user", $insert_id: "node-1" }, cb));
  await step("import_batch", (cb) => mp.import_batch([1, 2].map((i) => ({ event: `Old ${i}`, properties: { distinct_id: "node-user", time: past, $insert_id: `node-old-${i}` } })), cb));
  await step("people.set", (cb) => mp.people.set("node-user", { name: "Ada", visits: 1, gone: true, tags: ["a"] }, cb));
  await step("people.set_once", (cb) => mp.people.set_once("node-user", { name: "Eve", first: "yes" }, cb));
  await step("people.increment", (cb) => mp.people.increment("node-user", { visits: 4, fresh: 2 }, cb));
  await step("people.union", (cb) => mp.people.union("node-user", { tags: ["a", "b"] }, cb));
  await step("people.append", (cb) => mp.people.append("node-user", { tags: "c" }, cb));
  await step("people.remove", (cb) => mp.people.remove("node-user", { tags: "c" }, cb));
  await step("people.unset", (cb) => mp.people.unset("node-user", ["gone"], cb));
  await step("people.set other", (cb) => mp.people.set("node-gone", { name: "Bob" }, cb));
  await step("people.delete_user", (cb) => mp.people.delete_user("node-gone", cb));
})().then(() => process.exit(0)); // connections are kept alive
