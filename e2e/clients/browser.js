// Drives npm mixpanel-browser in a headless Chromium, as pages would. Reads the
// scenarios from the environment, runs them side by side, each in a browser of its
// own (as a new visitor), and prints one line of JSON for each.
const { chromium } = require("playwright-core");

const { PAGE, TEXTS } = process.env;
const scenarios = JSON.parse(process.env.SCENARIOS);

// init starts the SDK in the page, changed in its host only.
const init = (page, s, options = {}) =>
  page.evaluate(
    ([token, config]) =>
      new Promise((loaded) => {
        mixpanel.init(token, { ...config, loaded });
      }).then(() => undefined),
    [s.token, { api_host: s.api, ...s.options, ...options }],
  );

// sent waits until the SDK's queues are empty, after requests to all the paths.
async function sent(page, seen, ...paths) {
  const end = Date.now() + 40_000;
  const empty = () =>
    page.evaluate(() =>
      Object.keys(localStorage)
        .filter((k) => /^__mpq_.*_(ev|pp|gr)$/.test(k))
        .every((k) => JSON.parse(localStorage[k] || "[]").length === 0),
    );
  while (!paths.every((p) => seen.answered.some((r) => r.endsWith(p))) || !(await empty())) {
    if (Date.now() > end) throw new Error(`queue not empty after ${JSON.stringify(seen.answered)}`);
    await page.waitForTimeout(50);
  }
}

// delivered waits until so many requests are answered, beacons too, which nobody in
// the browser waits for.
async function delivered(s, n) {
  const end = Date.now() + 40_000;
  for (;;) {
    const have = Number(await (await fetch(`${s.api}/passed`)).text());
    if (have >= n) return;
    if (Date.now() > end) throw new Error(`${have} requests answered, want ${n}`);
    await new Promise((r) => setTimeout(r, 50));
  }
}

const called = (page, body, ...args) => page.evaluate(new Function("args", `const [text] = args; return (async () => { ${body} })();`), [TEXTS, ...args]);

const run = {
  async everything(page, seen, s) {
    await init(page, s);
    await called(
      page,
      `mixpanel.track("Anonymous", { text, long: "🎉".repeat(300), list: [text] });
       mixpanel.register({ plan: "pro" });
       mixpanel.register_once({ plan: "free", since: 2026 });
       mixpanel.time_event("Timed");
       mixpanel.identify("browser-user");
       mixpanel.set_group("company", "acme");
       await new Promise((r) => setTimeout(r, 100));
       mixpanel.track("Timed");
       mixpanel.track_with_groups("Grouped", { x: 1 }, { team: ["red", "blue"] });
       // The queue keeps no order of its own: the SDK calls back when a write is in it.
       const put = (f) => new Promise((done) => f(done));
       const p = mixpanel.people;
       await put((cb) => p.set({ name: text, visits: 1, gone: true, tags: ["a"], when: new Date(Date.UTC(2026, 0, 2, 3, 4, 5)) }, cb));
       await put((cb) => p.set("one", "x", cb));
       await put((cb) => p.set_once({ name: "Eve", first: "yes" }, cb));
       await put((cb) => p.increment({ visits: 4, fresh: 2 }, cb));
       await put((cb) => p.increment("visits", -1, cb));
       await put((cb) => p.append("tags", "c", cb));
       await put((cb) => p.append({ pages: "home" }, cb));
       await put((cb) => p.union("tags", ["a", "b"], cb));
       await put((cb) => p.remove("pages", "home", cb));
       await put((cb) => p.unset("gone", cb));
       await put((cb) => p.append("$transactions", { $amount: 5 }, cb));
       await put((cb) => p.clear_charges(cb));
       p.increment("stays");
       const g = mixpanel.get_group("company", "acme");
       await put((cb) => g.set({ name: text, gone: 1, tags: ["a"] }, cb));
       await put((cb) => g.set("plan", "pro", cb));
       await put((cb) => g.set_once({ name: "Eve", first: "yes" }, cb));
       await put((cb) => g.union("tags", ["b", "c"], cb));
       await put((cb) => g.remove("tags", "a", cb));
       await put((cb) => g.unset("gone", cb));
       const other = mixpanel.get_group("company", "gone");
       await put((cb) => other.set("name", "Gone", cb));
       await put((cb) => other.delete(cb));`,
    );
    await sent(page, seen, "/track/", "/engage/", "/groups/");
  },

  async deleting(page, seen, s) {
    await init(page, s);
    await called(page, `mixpanel.identify("browser-gone"); await new Promise((done) => mixpanel.people.set("name", "Gone", done)); mixpanel.people.delete_user();`);
    await sent(page, seen, "/engage/");
  },

  async unbatched(page, seen, s) {
    await init(page, s, { batch_requests: false });
    const answers = {
      callbacks: await called(
        page,
        `const answers = [];
         const call = (f) => new Promise((done) => f((a) => done(answers.push(a))));
         mixpanel.identify("browser-user");
         await call((cb) => mixpanel.track("Unbatched", { text }, cb));
         await call((cb) => mixpanel.people.set({ name: text }, cb));
         await call((cb) => mixpanel.get_group("company", "acme").set({ name: text }, cb));
         mixpanel.track("Beacon", { text }, { transport: "sendBeacon" });
         return answers;`,
      ),
    };
    await delivered(s, 5); // $identify, the three, the beacon
    return answers;
  },

  // The queue is sent by beacon when the page is left, stays in the store, and is
  // sent again when the visitor comes back.
  async leaving(page, seen, s) {
    await init(page, s);
    await called(page, `mixpanel.track("Left", { text });`);
    await page.waitForFunction(() => Object.keys(localStorage).some((k) => k.endsWith("_ev") && localStorage[k].includes("Left")));
    await page.goto(`${PAGE}/other`);
    await delivered(s, 1);
    await page.goto(PAGE);
    await init(page, s);
    await sent(page, seen, "/track/");
    const second = await page.context().newPage();
    await second.goto(PAGE);
    await init(second, s);
    await called(second, `mixpanel.track("Closed", { text });`);
    await second.waitForFunction(() => Object.keys(localStorage).some((k) => k.endsWith("_ev") && localStorage[k].includes("Closed")));
    await second.close({ runBeforeUnload: true });
    await delivered(s, 3);
  },

  // The server takes the first batch, but its answer is lost in a proxy.
  async lost(page, seen, s) {
    let times = 0;
    await page.route(/\/(track|engage|groups)\//, async (route) => {
      const answer = await route.fetch();
      if (++times <= 3) return route.fulfill({ response: answer, status: 503 });
      return route.fulfill({ response: answer });
    });
    await init(page, s, { batch_flush_interval_ms: 200 });
    await called(
      page,
      `for (let i = 0; i < 60; i++) mixpanel.track("Repeated " + i, { i });
       mixpanel.identify("browser-user");
       mixpanel.people.set({ name: text });
       mixpanel.get_group("company", "acme").set({ name: text });`,
    );
    await sent(page, seen, "200 /track/", "200 /engage/", "200 /groups/");
  },

  async identify(page, seen, s) {
    await init(page, s, { batch_flush_interval_ms: 200 });
    const before = await page.evaluate(() => ({ distinct_id: mixpanel.get_distinct_id(), device_id: mixpanel.get_property("$device_id") }));
    await called(
      page,
      `mixpanel.track("Anonymous");
       mixpanel.identify("browser-user");
       mixpanel.people.set({ name: text });
       mixpanel.track("Known");
       mixpanel.track("Alias");`,
    );
    await sent(page, seen, "/track/", "/engage/");
    if (s.alias) {
      await called(page, `mixpanel.alias("browser-alias");`);
      await page.waitForTimeout(300);
      await sent(page, seen, "/track/");
    }
    return before;
  },
};

async function scenario(browser, s) {
  const context = await browser.newContext();
  const errors = [];
  const seen = { answered: [], requests: [] };
  const api = (url) => url.startsWith(s.api);
  context.on("page", (page) => {
    page.on("pageerror", (e) => errors.push(`page: ${e.message}`));
    page.on("console", (m) => {
      if (m.type() === "error" && !(s.run === "lost" && m.text().includes("503"))) errors.push(`console: ${m.text()}`);
    });
  });
  context.on("request", (r) => {
    if (!api(r.url()) && !r.url().startsWith(PAGE)) errors.push(`a request to ${new URL(r.url()).origin}`);
    if (api(r.url())) seen.requests.push(`${r.method()} ${r.resourceType()} ${new URL(r.url()).pathname}`);
  });
  context.on("requestfailed", (r) => errors.push(`${r.resourceType()} ${r.url().split("?")[0]}: ${r.failure().errorText}`));
  context.on("response", (r) => {
    if (api(r.url())) seen.answered.push(`${r.status()} ${new URL(r.url()).pathname}`);
  });
  let more = {};
  try {
    const page = await context.newPage();
    await page.goto(PAGE);
    more = (await run[s.run](page, seen, s)) || {};
  } catch (e) {
    errors.push(e.message);
  }
  await context.close();
  console.log(JSON.stringify({ step: s.name, errors, requests: seen.requests, ...more }));
}

(async () => {
  const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args });
  await Promise.all(scenarios.map((s) => scenario(browser, s)));
  await browser.close();
})();
