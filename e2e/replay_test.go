package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// m is a JSON object.
type m = map[string]any

// replay is a request as a client sends it that can't be run here, and how that
// client reads the answer: an error is what it would report.
type replay struct {
	name  string
	path  string
	head  map[string]string
	body  []byte
	reads func(*harness.Answer) error
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func basic(user, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret))
}

// heads has Authorization, "" for none, and what comes in pairs after it.
func heads(auth string, pairs ...string) map[string]string {
	out := map[string]string{"Authorization": auth}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = pairs[i+1]
	}
	return out
}

// answer reads a JSON object.
func answer(a *harness.Answer) (m, error) {
	var out m
	if err := json.Unmarshal(a.Body, &out); err != nil {
		return nil, fmt.Errorf("HTTP %d, no JSON object: %s", a.Status, a.Body)
	}
	return out, nil
}

// statusIsOne is mixpanel-python: the HTTP status does not matter, status must be 1.
func statusIsOne(a *harness.Answer) error {
	out, err := answer(a)
	if err == nil && out["status"] != 1.0 {
		err = fmt.Errorf("status %v, error %v", out["status"], out["error"])
	}
	return err
}

// codeIs is Segment and mixpanel-utils: a numeric code, also that of the HTTP answer.
func codeIs(code int) func(*harness.Answer) error {
	return func(a *harness.Answer) error {
		out, err := answer(a)
		if err == nil && (a.Status != code || out["code"] != float64(code)) {
			err = fmt.Errorf("HTTP %d, code %v: %s", a.Status, out["code"], a.Body)
		}
		return err
	}
}

// noError is RudderStack on /engage and /groups: 200, and no error in a JSON object.
func noError(a *harness.Answer) error {
	var out any
	if err := json.Unmarshal(a.Body, &out); a.Status != 200 || err != nil {
		return fmt.Errorf("HTTP %d: %s", a.Status, a.Body)
	}
	if o, ok := out.(m); ok && o["error"] != nil {
		return fmt.Errorf("error %v", o["error"])
	}
	return nil
}

// failedAt reads a 400 with one failed record, by its index and both names of its id.
func failedAt(index float64, insertID string) func(*harness.Answer) error {
	return func(a *harness.Answer) error {
		if err := codeIs(400)(a); err != nil {
			return err
		}
		out, _ := answer(a)
		list, _ := out["failed_records"].([]any)
		if len(list) != 1 {
			return fmt.Errorf("failed_records %v", out["failed_records"])
		}
		f, _ := list[0].(m)
		if f["index"] != index || f["insert_id"] != insertID || f["$insert_id"] != insertID {
			return fmt.Errorf("failed record %v", f)
		}
		return nil
	}
}

// python are the requests of mixpanel-python: forms of one object, or a list of them
// from its buffered consumer, with verbose and ip in the body.
func python(t *testing.T, path, auth string, data any) replay {
	form := url.Values{"data": {string(mustJSON(t, data))}, "verbose": {"1"}, "ip": {"0"}}
	return replay{path: path, head: heads(auth, "Content-Type", "application/x-www-form-urlencoded", "Accept", "*/*", "Accept-Encoding", "gzip, deflate"), body: []byte(form.Encode()), reads: statusIsOne}
}

func (r replay) named(name string) replay {
	r.name = name
	return r
}

func (r replay) send(t *testing.T, c *harness.Client) {
	t.Helper()
	t.Run(r.name, func(t *testing.T) {
		if err := r.reads(c.MustDo(t, http.MethodPost, r.path, r.body, r.head)); err != nil {
			t.Error(err)
		}
	})
}

// pythonEvent is an event as mixpanel-python makes it: time in fractions of a second,
// an insert id of 32 hexadecimal digits.
func pythonEvent(c *harness.Client, name string, n int, at time.Time) m {
	return m{"event": name, "properties": m{
		"token": c.Creds.ProjectToken, "distinct_id": "py-user", "time": float64(at.UnixMicro()) / 1e6, "$insert_id": fmt.Sprintf("%032x", n), "mp_lib": "python", "$lib_version": "5.3.0", "text": texts,
	}}
}

func TestRequestsOfMixpanelPythonAreReadAsSuccess(t *testing.T) {
	dir := t.TempDir()
	p := harness.Standalone(t, dir)
	c := p.NewProject(t, dir, typev1.IdentitySystem_IDENTITY_SYSTEM_ORIGINAL)
	now, past := time.Now(), time.Now().AddDate(0, 0, -20)
	secret, account := basic(c.Creds.ProjectSecret, ""), basic(c.Creds.ServiceAccount, c.Creds.ServiceSecret)
	people := func(more m) m {
		u := m{"$token": c.Creds.ProjectToken, "$time": float64(now.UnixMicro()) / 1e6, "$distinct_id": "py-user"}
		maps.Copy(u, more)
		return u
	}
	group := func(more m) m {
		u := m{"$token": c.Creds.ProjectToken, "$time": float64(now.UnixMicro()) / 1e6, "$group_key": "company", "$group_id": "acme"}
		maps.Copy(u, more)
		return u
	}
	for _, r := range []replay{
		python(t, "/track", "", pythonEvent(c, "Tracked", 1, now)).named("track"),
		python(t, "/track", "", []m{pythonEvent(c, "Buffered", 2, now), pythonEvent(c, "Buffered", 3, now)}).named("track, buffered"),
		python(t, "/import", secret, pythonEvent(c, "Imported", 4, past)).named("import_data with the secret"),
		python(t, "/import", secret, pythonEvent(c, "Imported", 4, past)).named("import_data again"),
		python(t, "/import?project_id="+c.Creds.ProjectID, account, pythonEvent(c, "Imported", 5, past)).named("import_data as a service account"),
		python(t, "/import", secret, []m{pythonEvent(c, "Imported", 6, past), pythonEvent(c, "Imported", 7, past)}).named("import_data, buffered"),
		python(t, "/engage", "", people(m{"$set": m{"name": texts, "visits": 1, "gone": true, "tags": []string{"a"}, "when": "2026-01-02T03:04:05"}})).named("people_set"),
		python(t, "/engage", "", people(m{"$set_once": m{"name": "Eve", "first": "yes"}})).named("people_set_once"),
		python(t, "/engage", "", people(m{"$add": m{"visits": 4.5}})).named("people_increment"),
		python(t, "/engage", "", people(m{"$append": m{"tags": "c"}})).named("people_append"),
		python(t, "/engage", "", people(m{"$union": m{"tags": []string{"a", "b"}}})).named("people_union"),
		python(t, "/engage", "", people(m{"$remove": m{"tags": "c"}})).named("people_remove"),
		python(t, "/engage", "", people(m{"$unset": []string{"gone"}})).named("people_unset"),
		python(t, "/engage", "", people(m{"$append": m{"$transactions": m{"$amount": 50}}})).named("people_track_charge"),
		python(t, "/engage", "", people(m{"$unset": []string{"$transactions"}})).named("people_clear_charges"),
		python(t, "/engage", "", people(m{"$distinct_id": "py-gone", "$set": m{"a": 1}})).named("people_set of another"),
		python(t, "/engage", "", people(m{"$distinct_id": "py-gone", "$delete": "", "$ignore_alias": true})).named("people_delete"),
		python(t, "/groups", "", group(m{"$set": m{"name": texts, "gone": 1, "tags": []string{"a"}}})).named("group_set"),
		python(t, "/groups", "", group(m{"$set_once": m{"name": "Eve", "first": "yes"}})).named("group_set_once"),
		python(t, "/groups", "", group(m{"$union": m{"tags": []string{"a", "b"}}})).named("group_union"),
		python(t, "/groups", "", group(m{"$remove": m{"tags": "a"}})).named("group_remove"),
		python(t, "/groups", "", group(m{"$unset": []string{"gone"}})).named("group_unset"),
		python(t, "/groups", "", group(m{"$group_id": "gone", "$set": m{"a": 1}})).named("group_set of another"),
		python(t, "/groups", "", group(m{"$group_id": "gone", "$delete": ""})).named("group_delete"),
		python(t, "/track", "", m{"event": "$create_alias", "properties": m{"distinct_id": "py-user", "alias": "py-alias", "token": c.Creds.ProjectToken}}).named("alias"),
		python(t, "/import", secret, m{"event": "$merge", "properties": m{"$distinct_ids": []string{"py-user", "py-merged"}, "token": c.Creds.ProjectToken}}).named("merge"),
		python(t, "/track", "", m{"event": "After", "properties": m{"token": c.Creds.ProjectToken, "distinct_id": "py-alias", "time": now.Unix(), "$insert_id": fmt.Sprintf("%032x", 8)}}).named("track by the alias"),
		python(t, "/track", "", m{"event": "After", "properties": m{"token": c.Creds.ProjectToken, "distinct_id": "py-merged", "time": now.Unix(), "$insert_id": fmt.Sprintf("%032x", 9)}}).named("track by the merged id"),
	} {
		r.send(t, c)
	}
	got := c.Export(t, "Tracked", "Buffered", "Imported", "After")
	if want := []string{"After", "After", "Buffered", "Buffered", "Imported", "Imported", "Imported", "Imported", "Tracked"}; !slices.Equal(harness.Names(got), want) {
		t.Errorf("stored %v, want %v", harness.Names(got), want)
	}
	for _, e := range got {
		if e.Properties["distinct_id"] != got[0].Properties["distinct_id"] || e.Event != "After" && e.Properties["text"] != texts {
			t.Errorf("%s is stored as %v", e.Event, e.Properties)
		}
	}
	harness.SameProperties(t, "py-user", c.Profile(t, "py-user"), m{"name": texts, "first": "yes", "visits": 5.5, "tags": []any{"a", "b"}, "when": "2026-01-02T03:04:05"})
	c.NoProfile(t, "py-gone")
	harness.SameProperties(t, "acme", c.Group(t, "company", "acme"), m{"name": texts, "first": "yes", "tags": []any{"b"}})
	c.NoGroup(t, "company", "gone")
}

func TestRequestsOfOtherSendersAreReadAsSuccess(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	token := c.Creds.ProjectToken
	secret, account := basic(c.Creds.ProjectSecret, ""), basic(c.Creds.ServiceAccount, c.Creds.ServiceSecret)
	past := time.Now().AddDate(0, 0, -20)
	event := func(name string, n int) m {
		return m{"event": name, "properties": m{"distinct_id": "sender", "time": past.UnixMilli(), "$insert_id": fmt.Sprintf("%s-%d", name, n), "$source": "segment", "text": texts}}
	}
	tooOld := m{"event": "Bad", "properties": m{"distinct_id": "sender", "time": 1, "$insert_id": "bad-1"}}
	form := func(data []byte) []byte { return []byte(url.Values{"data": {string(data)}}.Encode()) }
	const isForm = "application/x-www-form-urlencoded"
	set := func(id string, p m) m { return m{"$token": token, "$distinct_id": id, "$set": p} }
	for _, r := range []replay{
		{"utils import: gzip, strict, the secret", "/import?strict=1", heads(secret, "Content-Type", "application/json", "Content-Encoding", "gzip"), gzipped(t, mustJSON(t, []m{event("Utils", 1), event("Utils", 2)})), codeIs(200)},
		{"utils import: as a service account", "/import?strict=1&project_id=" + c.Creds.ProjectID, heads(account, "Content-Type", "application/json"), mustJSON(t, []m{event("Utils", 2), event("Utils", 3)}), codeIs(200)},
		{"utils streaming import: ip, verbose and strict in the query", "/import?ip=0&verbose=1&strict=1&project_id=" + c.Creds.ProjectID, heads(account, "Content-Type", "application/json", "Accept", "application/json", "Content-Encoding", "gzip"), gzipped(t, mustJSON(t, []m{event("Utils", 4)})), codeIs(200)},
		{"utils people_set: base64 of a list", "/engage?verbose=1", heads(account, "Content-Type", isForm), []byte(url.Values{"data": {base64.StdEncoding.EncodeToString(mustJSON(t, []m{{"$token": token, "$distinct_id": "utils-user", "$ignore_time": true, "$ignore_alias": true, "$ip": 0, "$set": m{"name": texts}}}))}, "project_id": {c.Creds.ProjectID}}.Encode()), statusIsOne},
		{"segment import: strict, the secret", "/import?strict=1", heads(secret, "Content-Type", "application/json"), mustJSON(t, []m{event("Segment", 1)}), codeIs(200)},
		{"segment import: the token as user", "/import?strict=1", heads(basic(token, ""), "Content-Type", "application/json"), mustJSON(t, []m{event("Segment", 2)}), codeIs(200)},
		{"segment import: the index of what failed", "/import?strict=1", heads(secret, "Content-Type", "application/json"), mustJSON(t, []m{event("Segment", 3), tooOld}), failedAt(1, "bad-1")},
		{"segment identify: form of one object on /track", "/track", heads("", "Content-Type", isForm), form(mustJSON(t, m{"event": "$identify", "properties": m{"$identified_id": "segment-user", "$anon_id": "0b1f0d2e-5c3a-4d7e-9f10-1234567890ab", "token": token, "segment_source_name": "x"}})), noError},
		{"segment people: form of one object", "/engage", heads("", "Content-Type", isForm), form(mustJSON(t, set("segment-user", m{"name": texts}))), noError},
		{"segment group: form of one object", "/groups", heads("", "Content-Type", isForm), form(mustJSON(t, m{"$token": token, "$group_key": "$group_id", "$group_id": "segment-acme", "$set": m{"name": texts}})), noError},
		{"segment checks the credentials", "/api/app/validate-project-credentials/", heads("", "Content-Type", "application/json"), mustJSON(t, m{"api_secret": c.Creds.ProjectSecret, "project_token": token}), func(a *harness.Answer) error {
			if out, err := answer(a); err != nil || a.Status != 200 || out["status"] != "ok" {
				return fmt.Errorf("HTTP %d: %s", a.Status, a.Body)
			}
			return nil
		}},
		{"rudderstack import: gzip", "/import?strict=1", heads(secret, "Content-Type", "application/json", "Content-Encoding", "gzip"), gzipped(t, mustJSON(t, []m{event("Rudder", 1)})), codeIs(200)},
		{"rudderstack import: the insert id of what failed", "/import?strict=1", heads(basic(token, ""), "Content-Type", "application/json"), mustJSON(t, []m{tooOld, event("Rudder", 2)}), failedAt(0, "bad-1")},
		{"rudderstack people: a list", "/engage", heads("", "Content-Type", "application/json"), mustJSON(t, []m{set("rudder-user", m{"name": texts}), set("rudder-other", m{"name": "x"})}), noError},
		{"rudderstack groups: a list", "/groups", heads("", "Content-Type", "application/json"), mustJSON(t, []m{{"$token": token, "$group_key": "company", "$group_id": "rudder-acme", "$set": m{"name": texts}}}), noError},
	} {
		r.send(t, c)
	}
	counts := map[string]int{}
	for _, e := range c.Export(t) {
		counts[e.Event]++
		if e.Event != "$identify" && (e.Properties["distinct_id"] != "sender" || e.Properties["text"] != texts) {
			t.Errorf("%s is stored as %v", e.Event, e.Properties)
		}
	}
	if want := map[string]int{"Utils": 4, "Segment": 3, "Rudder": 2, "$identify": 1}; !reflect.DeepEqual(counts, want) {
		t.Errorf("stored %v, want %v", counts, want)
	}
	for _, id := range []string{"utils-user", "segment-user", "rudder-user"} {
		harness.SameProperties(t, id, c.Profile(t, id), m{"name": texts})
	}
	harness.SameProperties(t, "segment's group", c.Group(t, "$group_id", "segment-acme"), m{"name": texts})
	harness.SameProperties(t, "rudderstack's group", c.Group(t, "company", "rudder-acme"), m{"name": texts})
}

// mixpanel-utils asks for gzip and reads what it gets, a line an event.
func TestExportAsMixpanelUtilsReadsIt(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	if err := statusIsOne(c.MustDo(t, http.MethodPost, "/track", []byte(url.Values{"data": {string(mustJSON(t, pythonEvent(c, "Tracked", 1, time.Now())))}, "verbose": {"1"}}.Encode()), heads("", "Content-Type", "application/x-www-form-urlencoded"))); err != nil {
		t.Fatal(err)
	}
	day := time.Now().UTC().Format(time.DateOnly)
	path := "/api/2.0/export?" + url.Values{"from_date": {day}, "to_date": {day}, "event": {`["Tracked"]`}, "project_id": {c.Creds.ProjectID}}.Encode()
	a := c.MustDo(t, http.MethodGet, path, nil, heads(basic(c.Creds.ServiceAccount, c.Creds.ServiceSecret), "Accept-Encoding", "gzip"))
	body := a.Body
	if a.Header.Get("Content-Encoding") == "gzip" {
		r, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if _, err := out.ReadFrom(r); err != nil {
			t.Fatal(err)
		}
		body = out.Bytes()
	}
	lines := strings.Split(strings.TrimSpace(string(body)), "\n")
	var e harness.Exported
	if err := json.Unmarshal([]byte(lines[0]), &e); err != nil || a.Status != 200 || len(lines) != 1 || e.Event != "Tracked" || e.Properties["text"] != texts {
		t.Errorf("HTTP %d, %v: %s", a.Status, err, body)
	}
	empty := c.MustDo(t, http.MethodGet, strings.Replace(path, "Tracked", "Nothing", 1), nil, nil)
	if empty.Status != 200 || len(empty.Body) != 0 {
		t.Errorf("an empty export: HTTP %d %q", empty.Status, empty.Body)
	}
}
