// Drives npm mixpanel as an application would. Reads what to do from the
// environment; prints one line of JSON a step.
const Mixpanel = require("mixpanel");

const env = process.env;
const [host, port] = env.HOST.split(":");
const config = { host, port: Number(port), protocol: env.PROTOCOL, verbose: !!env.VERBOSE };
if (env.SECRET) config.secret = env.SECRET;
if (env.ACCOUNT) config.credentials = new Mixpanel.ServiceAccountCredentials(env.ACCOUNT, env.ACCOUNT_SECRET, env.PROJECT_ID);
const mp = Mixpanel.init(env.TOKEN, config);

const messages = (err) => (Array.isArray(err) ? err : [err]).filter(Boolean).map((e) => e.message);
const call = (f) =>
  new Promise((resolve) => {
    try {
      f((err) => resolve(messages(err)));
    } catch (e) {
      resolve(messages(e));
    }
  });
const print = (step, errors) => console.log(JSON.stringify({ step, errors }));
const step = async (name, f) => print(name, await call(f));
// refused must fail.
const refused = async (name, f) => print(name, (await call(f)).length ? [] : ["succeeded"]);

const text = env.TEXTS;
const past = Math.floor(Date.now() / 1000) - 20 * 86400;
const user = "node-user";
const events = (n, make) => Array.from({ length: n }, (_, i) => make(i));

async function track() {
  await step("track", (cb) => mp.track("Tracked", { distinct_id: user, text, long: "🎉".repeat(300), ip: "203.0.113.9" }, cb));
  await step("track without properties", (cb) => mp.track("Without a user", cb));
  await step("track at a time", (cb) => mp.track("At a time", { distinct_id: user, time: new Date(Date.now() - 86400e3) }, cb));
  // 120 are more than the 50 of a request.
  const batch = events(120, (i) => ({ event: `Batch ${i}`, properties: { distinct_id: user, i, text } }));
  await step("track_batch", (cb) => mp.track_batch(batch.slice(0, 60), cb));
  await step("track_batch with options", (cb) => mp.track_batch(batch.slice(60), { max_batch_size: 20, max_concurrent_requests: 2 }, cb));
}

async function importing() {
  const one = { distinct_id: user, $insert_id: "node-1" };
  await step("import", (cb) => mp.import("Imported", past, { ...one }, cb));
  await step("import again, by date", (cb) => mp.import("Imported", new Date(past * 1000), { ...one }, cb));
  const batch = () => events(60, (i) => ({ event: `Old ${i}`, properties: { distinct_id: user, time: past, $insert_id: `node-old-${i}`, text } }));
  await step("import_batch", (cb) => mp.import_batch(batch(), cb));
  await step("import_batch again", (cb) => mp.import_batch(batch(), { max_batch_size: 10 }, cb));
}

async function people() {
  const p = mp.people;
  await step("people.set", (cb) => p.set(user, { name: text, visits: 1, gone: true, tags: ["a"] }, cb));
  await step("people.set one", (cb) => p.set(user, "plan", "pro", cb));
  await step("people.set_once", (cb) => p.set_once(user, { name: "Eve", first: "yes" }, cb));
  await step("people.set_once one", (cb) => p.set_once(user, "second", "yes", cb));
  await step("people.increment", (cb) => p.increment(user, { visits: 4, fresh: 2 }, cb));
  await step("people.increment one by a number", (cb) => p.increment(user, "visits", -1, cb));
  await step("people.increment one", (cb) => p.increment(user, "stays", cb));
  await step("people.union", (cb) => p.union(user, { tags: ["a", "b"] }, cb));
  await step("people.append", (cb) => p.append(user, { tags: "c", pages: "home" }, cb));
  await step("people.append one", (cb) => p.append(user, "pages", "away", cb));
  await step("people.remove", (cb) => p.remove(user, { pages: "away" }, cb));
  await step("people.unset", (cb) => p.unset(user, "gone", cb));
  await step("people.track_charge", (cb) => p.track_charge(user, 5, cb));
  await step("people.clear_charges", (cb) => p.clear_charges(user, cb));
  await step("people.track_charge with properties", (cb) => p.track_charge(user, "19.5", { $time: new Date("2026-02-01"), sku: "x" }, cb));
  await step("people.set other", (cb) => p.set("node-gone", { name: "Bob" }, cb));
  await step("people.delete_user", (cb) => p.delete_user("node-gone", cb));
}

async function modifiers() {
  const p = mp.people;
  const id = "node-modified";
  const more = { $ip: "203.0.113.9", $ignore_time: true, $ignore_alias: true, $time: new Date(), $latitude: 18.5, $longitude: 73.8 };
  await step("people.set, modified", (cb) => p.set(id, { a: 1, ip: "203.0.113.9", list: ["x"] }, more, cb));
  await step("people.set_once, modified", (cb) => p.set_once(id, { a: 2, b: 1 }, more, cb));
  await step("people.increment, modified", (cb) => p.increment(id, "n", 3, more, cb));
  await step("people.append, modified", (cb) => p.append(id, { list: "z" }, more, cb));
  await step("people.union, modified", (cb) => p.union(id, { list: ["y"] }, more, cb));
  await step("people.remove, modified", (cb) => p.remove(id, { list: "z" }, more, cb));
  await step("people.unset, modified", (cb) => p.unset(id, ["none"], more, cb));
  await step("people.track_charge, modified", (cb) => p.track_charge(id, 5, {}, more, cb));
  await step("people.clear_charges, modified", (cb) => p.clear_charges(id, more, cb));
}

async function groups() {
  const g = mp.groups;
  const [key, id] = ["company", "acme"];
  await step("groups.set", (cb) => g.set(key, id, { name: text, gone: true, alsogone: 1, tags: ["a"] }, cb));
  await step("groups.set one", (cb) => g.set(key, id, "plan", "pro", cb));
  await step("groups.set_once", (cb) => g.set_once(key, id, { name: "Eve", first: "yes" }, cb));
  await step("groups.set_once one", (cb) => g.set_once(key, id, "second", "yes", cb));
  await step("groups.union", (cb) => g.union(key, id, { tags: ["a", "b"] }, cb));
  await step("groups.union one, modified", (cb) => g.union(key, id, { tags: "c" }, { $ip: "203.0.113.9", $ignore_time: true }, cb));
  await step("groups.remove", (cb) => g.remove(key, id, { tags: "a" }, cb));
  await step("groups.unset", (cb) => g.unset(key, id, ["gone", "alsogone"], cb));
  await step("groups.set other", (cb) => g.set(key, "gone", { name: "Gone" }, cb));
  await step("groups.delete_group", (cb) => g.delete_group(key, "gone", cb));
}

async function alias() {
  await step("track before", (cb) => mp.track("Before", { distinct_id: "anonymous-1" }, cb));
  await step("alias", (cb) => mp.alias("anonymous-1", "known-1", cb));
  await step("track after", (cb) => mp.track("After", { distinct_id: "known-1" }, cb));
  await step("people.set", (cb) => mp.people.set("known-1", { name: "Ada" }, cb));
  await step("people.delete_user with $ignore_alias", (cb) => mp.people.delete_user("known-1", { $ignore_alias: true }, cb));
}

(async () => {
  if (env.ALIAS) return alias();
  if (env.REFUSED) {
    await refused("track", (cb) => mp.track("E", { distinct_id: user }, cb));
    await refused("track_batch", (cb) => mp.track_batch([{ event: "E", properties: { distinct_id: user } }], cb));
    await refused("people.set", (cb) => mp.people.set(user, { a: 1 }, cb));
    await refused("groups.set", (cb) => mp.groups.set("company", "acme", { a: 1 }, cb));
    return;
  }
  await track();
  if (env.IMPORT) await importing();
  await people();
  await modifiers();
  await groups();
})().then(() => process.exit(0)); // connections are kept alive
