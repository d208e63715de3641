package modeltest_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// step is one thing that happens: a request, or time that passes, or a restart.
type step struct {
	Request *request      `json:",omitempty"`
	Advance time.Duration `json:",omitempty"`
	Restart bool          `json:",omitempty"`
	Check   bool          `json:",omitempty"`
}

// setup is what a history runs on.
type setup struct {
	Start         time.Time
	HashBudget    int
	IdentityCache int
	NameOnly      bool
	ByEventTime   bool
	Sources       map[string][]string
}

// shape is what a seed's history is like.
type shape struct {
	main    int64 // the project that gets most
	users   int   // size of the id space
	fresh   int   // of 100 events, those of ids never seen before
	few     bool  // nearly all events are of two users, and count
	spread  int64 // how far back events go, hours
	advance time.Duration
}

type generator struct {
	r     *rand.Rand
	shape shape
	now   time.Time
	n     int
	sent  []*request // for re-sending
}

// operations is how many events and updates a history has.
const operations = 5000

// generate makes the history of a seed.
func generate(seed uint64) (setup, []step) {
	r := rand.New(rand.NewPCG(seed, 20260131)) //nolint:gosec // repeatable on purpose
	s := setup{
		Start:      time.Date(2026, 1, 28+r.IntN(4), r.IntN(24), r.IntN(60), r.IntN(60), r.IntN(1000)*1_000_000, time.UTC),
		HashBudget: 6_000_000, IdentityCache: 100_000, NameOnly: r.IntN(6) == 0, ByEventTime: r.IntN(3) == 0,
	}
	if r.IntN(3) == 0 {
		s.Sources = map[string][]string{"clevertap": {"CT-Prod", "clevertap"}, "braze": {"bz"}}
	}
	g := &generator{r: r, now: s.Start, shape: shape{main: int64(seed%3) + 1, users: 4 + r.IntN(8), fresh: r.IntN(4), spread: 24 * 4, advance: time.Hour}}
	switch {
	case seed%10 == 7: // nothing fits into memory
		s.HashBudget, s.IdentityCache = []int{0, 20, 400}[r.IntN(3)], 1000
		g.shape.fresh, g.shape.spread = 40, 24*40
	case seed%20 == 3: // few users with many events: the guardrail decides
		g.shape.users, g.shape.fresh, g.shape.advance, g.shape.spread, g.shape.few = 1, 0, time.Minute, 2, true
	}
	var steps []step
	restarts := 2 + r.IntN(2)
	for done := 0; done < operations; {
		before := done
		if r.IntN(3) > 0 {
			d := time.Duration(r.Int64N(int64(g.shape.advance)))
			if r.IntN(25) == 0 && g.shape.users > 1 {
				d = time.Duration(r.Int64N(int64(9 * 24 * time.Hour)))
			}
			g.now = g.now.Add(d)
			steps = append(steps, step{Advance: d})
		}
		q := g.request()
		done += len(q.Items)
		steps = append(steps, step{Request: q})
		if part := operations / (restarts + 1); done/part > before/part && done < operations {
			steps = append(steps, step{Check: r.IntN(2) == 0, Restart: true})
		}
	}
	return s, append(steps, step{Check: true})
}

func (g *generator) one(list ...string) string { return list[g.r.IntN(len(list))] }
func (g *generator) chance(n int) bool         { return g.r.IntN(n) == 0 }

func (g *generator) project() int64 {
	if !g.shape.few && g.chance(6) {
		return int64(g.r.IntN(3)) + 1
	}
	return g.shape.main
}

// request makes a new request, or sends an old one again, whole or in part.
func (g *generator) request() *request {
	if len(g.sent) > 0 && g.chance(5) {
		old := g.sent[g.r.IntN(len(g.sent))]
		q := *old
		q.Gzip = g.chance(2)
		at := g.r.IntN(len(q.Items))
		q.Items = q.Items[at : at+1+g.r.IntN(len(q.Items)-at)]
		return &q
	}
	size := 1 + g.r.IntN([]int{3, 20, 60, 150}[g.r.IntN(4)])
	q := &request{Project: g.project(), Strict: g.chance(2), Gzip: g.chance(4)}
	k := g.r.IntN(20)
	if g.shape.few {
		k = g.r.IntN(14)
	}
	switch {
	case k < 9:
		q.Endpoint, q.Lines = imports, g.chance(4)
	case k < 13:
		q.Endpoint, q.Form = track, g.chance(3)
	case k < 19:
		q.Endpoint, q.Form = engage, g.chance(3)
		size = 1 + size/2
	default:
		q.Endpoint = groups
		size = 1 + g.r.IntN(3)
	}
	if q.Form {
		q.Gzip = false
	}
	for range size {
		q.Items = append(q.Items, g.item(q))
	}
	if q.Endpoint == imports && q.Project == 2 && g.chance(12) && g.shape.users > 1 {
		g.burst(q)
	}
	if g.chance(60) {
		q.Items[g.r.IntN(len(q.Items))] = g.one(`{"event":`, `{"event" "A"}`, `[1,`, `nul`)
	}
	for range g.r.IntN(1 + len(q.Items)/8) { // repeats in one batch
		q.Items = append(q.Items, q.Items[g.r.IntN(len(q.Items))])
	}
	g.sent = append(g.sent, q)
	return q
}

func (g *generator) item(q *request) string {
	if g.chance(250) {
		return g.one(`1`, `"x"`, `[]`, `{}`, `null`)
	}
	var v any
	if q.Endpoint == engage || q.Endpoint == groups {
		v = g.update(q)
	} else {
		v = g.event(q)
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func (g *generator) token(p int64) any {
	switch g.r.IntN(60) {
	case 0:
		return "tok-9"
	case 1:
		return fmt.Sprint("tok-", 1+g.r.IntN(3))
	}
	return fmt.Sprint("tok-", p)
}

func (g *generator) uuid() string {
	return fmt.Sprintf("0b1f0d2e-5c3a-4d7e-9f10-1234567890a%d", g.r.IntN(g.shape.users+1))
}

func (g *generator) device() string { return fmt.Sprint("d", g.r.IntN(g.shape.users+1)) }

// id is any id a user may have.
func (g *generator) id() string {
	if g.r.IntN(100) < g.shape.fresh {
		g.n++
		return fmt.Sprint("fresh-", g.n)
	}
	switch g.r.IntN(14) {
	case 0:
		return "$device:" + g.device()
	case 1, 2:
		return g.uuid()
	case 3:
		return "$device:" + g.uuid()
	case 4, 5:
		return g.partner()
	case 6:
		return fmt.Sprint("nick", g.r.IntN(g.shape.users))
	}
	return fmt.Sprint("u", g.r.IntN(g.shape.users))
}

// partner is a partner's id, now and then one of a user.
func (g *generator) partner() string {
	switch g.r.IntN(10) {
	case 0:
		return fmt.Sprint("u", g.r.IntN(g.shape.users))
	case 1:
		return "12345"
	case 2:
		return "$device:" + g.device()
	}
	return fmt.Sprint("P", g.r.IntN(5))
}

type object = map[string]any

func (g *generator) event(q *request) any {
	g.n++
	p := object{"time": g.time(), "$insert_id": fmt.Sprint("i-", g.n)}
	e := object{"event": g.one("E", "View", "E", "View", "Purchase", "Notification Sent", "UTM Visited", "Canvas Entry", "Airship Send", "emailSend", "$campaign_open", "$app_open", "$campaign_delivery", "$opt_in", "xp.message.open", "Mailchimp - Opened Campaign"), "properties": p}
	if g.chance(8) { // collides with others
		p["$insert_id"], p["time"] = fmt.Sprint("i", g.r.IntN(4)), json.Number(fmt.Sprint(g.now.Unix()-int64(g.r.IntN(2))*86400))
	}
	if g.shape.few {
		p["distinct_id"], p["token"], e["event"] = g.one("u0", "u1"), g.token(q.Project), "View"
		return e
	}
	if q.Endpoint == track || g.chance(20) {
		p["token"] = g.token(q.Project)
	}
	if !g.chance(6) {
		p["distinct_id"] = g.id()
	}
	if q.Project == 1 {
		if g.chance(3) {
			p["$device_id"] = g.device()
		}
		if g.chance(4) {
			p["$user_id"] = g.one(fmt.Sprint("u", g.r.IntN(g.shape.users)), g.id())
		}
	} else if !g.chance(3) {
		p["distinct_id"] = g.id()
	}
	if g.chance(7) {
		g.identity(e, p)
	}
	if g.chance(2) {
		p["$source"] = g.one("clevertap", "CleverTap", "CT-Prod", "airship", "iterable", "onesignal", "xtremepush", "Mailchimp", "other")
	}
	if g.chance(6) {
		p["$partner_id"] = g.one("braze", "Braze", "bz", "x")
	}
	for range g.r.IntN(3) {
		p[g.one("plan", "n", "list", "obj", "ö")] = g.value()
	}
	if g.chance(6) {
		p["when"] = g.date()
	}
	if g.chance(8) {
		g.twist(q, e, p)
	}
	return e
}

// time is an event's time: seconds, milliseconds, text, fractions.
func (g *generator) time() any {
	at := g.now.UnixMilli() - g.r.Int64N(g.shape.spread*3_600_000)
	if g.chance(30) {
		at = g.now.UnixMilli() + g.r.Int64N(2*3_600_000) // some of it beyond the hour
	}
	switch g.r.IntN(4) {
	case 0:
		return json.Number(fmt.Sprint(at))
	case 1:
		return json.Number(fmt.Sprintf("%d.%03d", at/1000, at%1000))
	case 2:
		return fmt.Sprint(at / 1000)
	}
	return json.Number(fmt.Sprint(at / 1000))
}

// identity makes an identity call of an event.
func (g *generator) identity(e, p object) {
	if g.chance(3) {
		delete(p, "distinct_id")
	}
	switch g.r.IntN(4) {
	case 0:
		e["event"] = "$identify"
		if !g.chance(3) {
			p["$identified_id"] = g.id()
		}
		p[g.one("$anon_id", "$anon_distinct_id")] = g.one(g.uuid(), g.uuid(), "$device:"+g.uuid(), g.id())
	case 1:
		e["event"] = "$merge"
		p["$distinct_ids"] = []string{g.id(), g.id()}
	default:
		e["event"] = "$create_alias"
		p["alias"] = g.one(fmt.Sprint("nick", g.r.IntN(g.shape.users)), g.id())
	}
	switch g.r.IntN(40) {
	case 0:
		p["alias"], p["$anon_id"] = 7, true
	case 1:
		p["alias"], p["$identified_id"], p["$distinct_ids"] = "null", "none", []string{"n/a", "u1"}
	case 2:
		p["alias"], p["$anon_id"], p["$distinct_ids"] = "", "", []string{"u1"}
	case 3:
		p["alias"] = strings.Repeat("ä", 300)
	}
}

// twist makes something unusual or wrong of an event.
func (g *generator) twist(q *request, e, p object) {
	switch g.r.IntN(24) {
	case 0:
		delete(p, "time")
	case 1:
		p["time"] = g.one("yesterday", "", "0x10", "12 ")
	case 2:
		p["time"] = 12345
	case 3:
		delete(p, "$insert_id")
	case 4:
		p["$insert_id"] = g.one("", "null", "a b", "ü1", strings.Repeat("x", 37))
	case 5:
		p["$insert_id"] = 4711
	case 6:
		p["distinct_id"] = g.one("anonymous", "null", "-1", strings.Repeat("y", 256))
	case 7:
		p["distinct_id"] = []any{0, true, 42, 1.5}[g.r.IntN(4)]
	case 8:
		p["distinct_id"] = ""
	case 9:
		p["distinct_id"] = []string{"u1"}
	case 10:
		p["$user_id"] = []any{"null", 7, false, ""}[g.r.IntN(4)]
	case 11:
		p["$device_id"] = []any{"null", 7, "$device:d1", "", strings.Repeat("z", 600)}[g.r.IntN(5)]
	case 12:
		p["$ignore"] = []any{true, "true", false, ""}[g.r.IntN(4)]
	case 13:
		e["event"] = []any{"", 7, nil, strings.Repeat("é", 300)}[g.r.IntN(4)]
	case 14:
		e["properties"] = g.one("x", "")
	case 15:
		p["deep"] = object{"a": []any{object{"b": []any{1}}}}
	case 16:
		p["fine"] = object{"a": []any{object{"b": 1}}}
	case 17:
		p[strings.Repeat("k", 300)] = strings.Repeat("ü", 300)
	case 18: // as an export has them
		p["$import"], p["$distinct_id_before_identity"], p["$is_reshuffled"] = true, "before", true
	case 19:
		p["$failure_reason"], p["$identity_failure_reason"], p["$failure_description"] = "theirs", "theirs", "theirs"
	case 20:
		for i := range 260 {
			p[fmt.Sprint("p", i)] = i
		}
	case 21:
		p["ip"], e["meta"] = "10.1.2.3", 1
	case 22:
		p["half"] = "\ufffd"
	case 23:
		p["$source"], p["$partner_id"] = 7, []string{"braze"}
	}
}

// burst makes aliases of one user until no more are allowed.
func (g *generator) burst(q *request) {
	hub := fmt.Sprint("u", g.r.IntN(g.shape.users))
	for range 60 + g.r.IntN(200) {
		g.n++
		q.Items = append(q.Items, fmt.Sprintf(`{"event":"$create_alias","properties":{"time":%d,"$insert_id":"b-%d","distinct_id":%q,"alias":"many-%d"}}`, g.now.Unix(), g.n, hub, g.n))
	}
}

// date is a text that is a time, or nearly one.
func (g *generator) date() string {
	return g.one("2026-01-01", "2026-01-02T12:00", "2026-01-03T00:00:00", "2026-01-03T00:00:00Z", "2026-01-04T14:00:00+02:00", "2026-01-04T12:00:00.000Z", "2026-02-30", "yesterday", "2026-1-2")
}

func (g *generator) value() any {
	switch g.r.IntN(14) {
	case 0:
		return nil
	case 1:
		return true
	case 2:
		return json.Number("9007199254740993")
	case 3:
		return json.Number(g.one("9223372036854775807", "1.0", "2.5", "-3"))
	case 4:
		return []any{g.r.IntN(3), "a", json.Number("1.0"), nil}
	case 5:
		return object{"a": g.r.IntN(3), "b": []any{"x"}}
	case 6:
		return []any{}
	case 7, 8:
		return g.one("a", "b", "x\"y\\z", "ü", "")
	case 9:
		return []any{"a", "b", "a"}
	}
	return g.r.IntN(4)
}

var plain = []string{"n", "plan", "list", "name", "$email", "when"}

func (g *generator) property() string {
	if g.chance(3) {
		return partnerProperties[min(g.r.IntN(6), g.r.IntN(6))]
	}
	return plain[g.r.IntN(len(plain))]
}

func (g *generator) operand(op string) (string, any) {
	name := g.property()
	if name == "when" && op != "$add" && g.chance(2) {
		return name, g.date()
	}
	if strings.HasSuffix(name, "_user_id") {
		v := []any{g.partner(), g.partner(), g.partner(), g.partner(), 12345, json.Number("12345.0"), "null", "", nil, true}[g.r.IntN(10)]
		return name, v
	}
	if g.chance(2) { // of the right type
		switch op {
		case "$add":
			return "n", []any{1, -2, 0.5, json.Number("9223372036854775807")}[g.r.IntN(4)]
		case "$append":
			return "list", g.one("a", "b")
		case "$union":
			return "list", []any{[]any{"a", "c"}, []any{1, json.Number("1.0")}, "d", 2}[g.r.IntN(4)]
		case "$remove":
			return "list", []any{"a", 1, json.Number("1.0"), nil}[g.r.IntN(4)]
		}
	}
	return name, g.value()
}

func (g *generator) update(q *request) any {
	u := object{"$token": g.token(q.Project), "$distinct_id": g.id()}
	if q.Endpoint == groups {
		u = object{"$token": fmt.Sprint("tok-", q.Project), "$group_key": "company", "$group_id": g.one("a", "b"), "$set": object{"n": g.r.IntN(3)}}
		return u
	}
	if g.chance(3) {
		u["$distinct_id"] = fmt.Sprint("u", g.r.IntN(g.shape.users))
	}
	ops := 1
	if g.chance(4) {
		ops = 2 + g.r.IntN(3)
	}
	for range ops {
		switch k := g.r.IntN(24); {
		case k == 0:
			u["$delete"] = g.one("", "null")
		case k < 4:
			u["$unset"] = []string{g.property(), g.one(g.property(), "$last_seen")}
		default:
			op := g.one("$set", "$set", "$set", "$set_once", "$add", "$append", "$union", "$remove")
			operands := object{}
			for range 1 + g.r.IntN(3) {
				name, v := g.operand(op)
				operands[name] = v
			}
			u[op] = operands
		}
	}
	if g.chance(8) {
		u["$ignore_time"] = []any{true, "true", 1, false, "false"}[g.r.IntN(5)]
	}
	if g.chance(8) {
		u["$ignore_alias"] = []any{true, "true", false}[g.r.IntN(3)]
	}
	if g.chance(25) {
		switch g.r.IntN(8) {
		case 0:
			delete(u, "$token")
			u["$token"] = ""
		case 1:
			u["$distinct_id"] = []any{"null", "", true, nil, strings.Repeat("q", 256)}[g.r.IntN(5)]
		case 2:
			u["$set"] = "text"
		case 3:
			return object{"$token": u["$token"], "$distinct_id": u["$distinct_id"], "$set": object{}}
		case 4:
			return object{"$token": u["$token"], "$distinct_id": u["$distinct_id"], "$sett": object{"a": 1}}
		case 5:
			u["$unset"] = g.one("n", "plan")
		case 6:
			return object{"$token": u["$token"], "$distinct_id": u["$distinct_id"], "$set": object{"deep": []any{[]any{[]any{[]any{}}}}}}
		default:
			return object{"$token": u["$token"], "$distinct_id": u["$distinct_id"]}
		}
	}
	return u
}
