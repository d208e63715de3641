package sandbox

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func (w *world) change(action, key string, ids ...string) (int, map[string]any) {
	w.t.Helper()
	users := []map[string]string{}
	for _, id := range ids {
		users = append(users, map[string]string{"identity": id})
	}
	b, _ := json.Marshal(map[string]any{"bulk_profiles": []any{map[string]any{"user_profiles": users,
		"segments": []any{map[string]string{"customer_segment_id": key, "action": action}}}}})
	return w.do("POST", "/api/updateSegment", string(b))
}

func (w *world) errors() (out []string) {
	w.t.Helper()
	_, m := w.do("GET", "/sandbox/errors", "")
	for _, e := range m["errors"].([]any) {
		out = append(out, e.(map[string]any)["detail"].(string))
	}
	return out
}

func TestAnAPISegmentIsMadeOnceAndFollowsAddAndRemove(t *testing.T) {
	w := newWorld(t, Knobs{})
	if code, m := w.do("POST", "/api/createSegment", `[{"segment_name":"Premium Users","customer_segment_id":"S1"}]`); code != 200 || m["status"] != "success" {
		t.Fatalf("create: %d %v", code, m)
	}
	if code, m := w.do("POST", "/api/createSegment", `[{"segment_name":"Other","customer_segment_id":"S1"}]`); code != 409 || m["status"] != "fail" {
		t.Fatalf("create again: %d %v", code, m)
	}
	if code, _ := w.change("ADD", "S1", "a", "b", "c"); code != 200 {
		t.Fatal(code)
	}
	w.change("ADD", "S1", "a") // is in: nothing happens
	w.change("REMOVE", "S1", "b", "nobody")
	info, got := w.segment("Premium Users")
	if !slices.Equal(got, []string{"a", "c"}) || info.Type != "API Segments" || info.Key != "S1" {
		t.Fatalf("%+v %v", info, got)
	}
	if _, m := w.do("GET", "/1/profile.json?identity=c", ""); m["status"] != "success" {
		t.Errorf("ADD must make an unknown user a profile: %v", m)
	}
	if _, m := w.do("GET", "/1/profile.json?identity=nobody", ""); m["status"] != "fail" {
		t.Errorf("REMOVE must not: %v", m)
	}
	_, st := w.do("GET", "/sandbox/statistics", "")
	if ev := st["events"].(map[string]any); ev["Segment Membership Change"] != 4.0 || ev["Segment Membership Change REMOVE"] != 1.0 {
		t.Errorf("events %v", ev)
	}
	_, m := w.do("GET", "/sandbox/events", "")
	props := m["events"].([]any)[0].(map[string]any)["properties"].(map[string]any)
	if props["Action"] != "ADD" || props["Segment Name"] != "Premium Users" || props["Customer_Segment_ID"] != "S1" || props["Segment ID"] != float64(info.ID) || len(props) != 4 {
		t.Errorf("properties %v", props)
	}
	b, _ := json.Marshal(map[string]any{"bulk_profiles": []any{map[string]any{"user_profiles": []any{map[string]string{"guid": objectID(DefaultAccountID, "a")}},
		"segments": []any{map[string]any{"ct_segment_id": fmt.Sprint(info.ID), "action": "REMOVE"}}}}})
	w.do("POST", "/api/updateSegment", string(b))
	if _, got := w.segment("Premium Users"); !slices.Equal(got, []string{"c"}) {
		t.Errorf("by CleverTap's ids: %v", got)
	}
}

func TestWhatAnAPISegmentPassesOverIsInTheErrorStreamOnly(t *testing.T) {
	w := newWorld(t, Knobs{PartialPattern: "^bad"})
	w.do("POST", "/api/createSegment", `[{"segment_name":"P","customer_segment_id":"S1"}]`)
	if code, m := w.change("ADD", "S1", "good", "bad-one", "null"); code != 200 || m["status"] != "success" {
		t.Fatalf("%d %v", code, m)
	}
	if _, got := w.segment("P"); !slices.Equal(got, []string{"good"}) {
		t.Errorf("members %v", got)
	}
	if list := w.errors(); len(list) != 2 || !strings.Contains(strings.Join(list, " "), "Customer Segment ID S1, User Identity bad-one") {
		t.Errorf("error stream %v", list)
	}
	resp, err := http.Get(w.url + "/errors")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if b, _ := io.ReadAll(resp.Body); !strings.Contains(string(b), "User Identity bad-one") {
		t.Errorf("page:\n%s", b)
	}
}

func TestAPISegmentLimitsAreKept(t *testing.T) {
	w := newWorld(t, Knobs{})
	w.do("POST", "/api/createSegment", `[{"segment_name":"P","customer_segment_id":"S1"}]`)
	var many []string
	for i := range 101 {
		many = append(many, fmt.Sprint("u", i))
	}
	for what, got := range map[string]func() (int, map[string]any){
		"101 users":          func() (int, map[string]any) { return w.change("ADD", "S1", many...) },
		"no users":           func() (int, map[string]any) { return w.change("ADD", "S1") },
		"an unknown segment": func() (int, map[string]any) { return w.change("ADD", "S2", "a") },
		"an action in lower": func() (int, map[string]any) { return w.change("add", "S1", "a") },
		"no array":           func() (int, map[string]any) { return w.do("POST", "/api/createSegment", `{}`) },
		"no customer id":     func() (int, map[string]any) { return w.do("POST", "/api/createSegment", `[{"segment_name":"x"}]`) },
		"a name twice in call": func() (int, map[string]any) {
			return w.do("POST", "/api/createSegment", `[{"segment_name":"x","customer_segment_id":"1"},{"segment_name":"x","customer_segment_id":"2"}]`)
		},
	} {
		if code, m := got(); code != 400 || m["status"] != "fail" {
			t.Errorf("%s: %d %v", what, code, m)
		}
	}
	if _, got := w.segment("P"); len(got) != 0 {
		t.Errorf("members %v after refused calls", got)
	}
}

func TestTheFourthSegmentUpdateAtOnceIsRefused(t *testing.T) {
	w := newWorld(t, Knobs{})
	w.do("POST", "/api/createSegment", `[{"segment_name":"P","customer_segment_id":"S1"}]`)
	w.do("PUT", "/sandbox/knobs", `{"latency_by_path":{"/api/updateSegment":400}}`)
	codes := map[int]int{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range 5 {
		wg.Go(func() {
			code, _ := w.change("ADD", "S1", fmt.Sprint("u", i))
			mu.Lock()
			defer mu.Unlock()
			codes[code]++
		})
	}
	wg.Wait()
	if codes[200] != 3 || codes[429] != 2 {
		t.Errorf("answers %v", codes)
	}
	if _, got := w.segment("P"); len(got) != 3 {
		t.Errorf("refused calls must store nothing: %v", got)
	}
}

func TestAProfileIsReadByAnyOfItsIDsAndDeleted(t *testing.T) {
	w := newWorld(t, Knobs{})
	w.do("POST", "/1/upload", `{"d":[{"type":"profile","identity":"a","profileData":{"Email":"A@example.org","Name":"Ann"}},{"type":"profile","identity":"b","profileData":{}}]}`)
	object := objectID(DefaultAccountID, "a")
	for _, q := range []string{"identity=a", "email=a@example.org", "objectId=" + object} {
		_, m := w.do("GET", "/1/profile.json?"+q, "")
		rec, _ := m["record"].(map[string]any)
		if rec["identity"] != "a" || rec["email"] != "A@example.org" || rec["name"] != "Ann" {
			t.Errorf("%s: %v", q, m)
		}
	}
	if code, _ := w.do("GET", "/1/profile.json?identity=a&email=x@example.org", ""); code != 400 {
		t.Errorf("two ids: %d", code)
	}
	w.do("POST", "/api/createSegment", `[{"segment_name":"P","customer_segment_id":"S1"}]`)
	w.change("ADD", "S1", "a", "b")
	if code, _ := w.do("POST", "/1/delete/profiles.json", `{"identity":"a","guid":"`+object+`"}`); code != 400 {
		t.Errorf("both keys: %d", code)
	}
	for _, body := range []string{`{"identity":["b"]}`, `{"guid":"` + object + `"}`} {
		if code, m := w.do("POST", "/1/delete/profiles.json", body); code != 200 {
			t.Errorf("%s: %d %v", body, code, m)
		}
	}
	if _, got := w.segment("P"); len(got) != 0 {
		t.Errorf("deleted users are still in: %v", got)
	}
	if _, m := w.do("GET", "/1/profile.json?identity=a", ""); m["status"] != "fail" {
		t.Errorf("a is still there: %v", m)
	}
}

func TestAnExportIsReadPageByPage(t *testing.T) {
	w := newWorld(t, Knobs{CursorPending: 2})
	var recs []string
	for i := range 60 {
		recs = append(recs, fmt.Sprintf(`{"type":"event","identity":"u%02d","evtName":"Bought","evtData":{"kind":"k%d"}}`, i, i%2))
	}
	w.do("POST", "/1/upload", `{"d":[`+strings.Join(recs, ",")+`]}`)
	const open = `{"event_name":"Bought","from":20200101,"to":20991231}`
	_, m := w.do("POST", "/1/profiles.json?batch_size=23", open)
	cursor, _ := m["cursor"].(string)
	var got []string
	pages, waits := 0, 0
	for cursor != "" {
		_, m := w.do("GET", "/1/profiles.json?cursor="+cursor, "")
		if m["code"] == 2.0 {
			waits++
			continue
		}
		pages++
		for _, r := range m["records"].([]any) {
			got = append(got, r.(map[string]any)["identity"].(string))
		}
		cursor, _ = m["next_cursor"].(string)
	}
	if pages != 3 || waits != 6 || len(got) != 60 || got[59] != "u59" {
		t.Errorf("%d pages, %d waits, %d users", pages, waits, len(got))
	}
	w.do("PUT", "/sandbox/knobs", `{}`)
	_, m = w.do("POST", "/1/profiles.json?batch_size=5", strings.Replace(open, "}", `,"event_properties":[{"name":"kind","operator":"equals","value":"k1"}]}`, 1))
	cursor = m["cursor"].(string)
	if _, m := w.do("GET", "/1/profiles.json?cursor="+cursor, ""); len(m["records"].([]any)) != 30 || m["next_cursor"] != nil {
		t.Errorf("a batch below 23 is everything: %v", m)
	}
	if code, m := w.do("GET", "/1/profiles.json?cursor="+strings.ReplaceAll(cursor, "%", "%25"), ""); code != 400 || m["code"] != 3.0 {
		t.Errorf("encoded twice: %d %v", code, m)
	}
	_, m = w.do("POST", "/1/profiles.json", strings.Replace(open, "Bought", "Sold", 1))
	if _, m := w.do("GET", "/1/profiles.json?cursor="+m["cursor"].(string), ""); m["status"] != "success" || m["records"] != nil {
		t.Errorf("nobody: %v", m)
	}
	if code, _ := w.do("POST", "/1/profiles.json?batch_size=5001", open); code != 400 {
		t.Errorf("too large a batch: %d", code)
	}
}

func TestAStrictSchemaLosesWhatWasAccepted(t *testing.T) {
	w := newWorld(t, Knobs{SchemaDrop: true})
	_, m := w.do("POST", "/1/upload", `{"d":[{"type":"profile","identity":"a","profileData":{"Name":"Ann","plan":"pro"}},{"type":"event","identity":"a","evtName":"Bought"}]}`)
	if m["status"] != "success" || m["processed"] != 2.0 {
		t.Fatal(m)
	}
	_, m = w.do("GET", "/1/profile.json?identity=a", "")
	if data := m["record"].(map[string]any)["profileData"].(map[string]any); data["Name"] != "Ann" || data["plan"] != nil {
		t.Errorf("profile %v", data)
	}
	if list := w.errors(); len(list) != 2 {
		t.Errorf("error stream %v", list)
	}
}

func TestAccountsAreKeptApart(t *testing.T) {
	s, err := New(Config{Accounts: map[string]string{"ONE": "p1", "TWO": "p2"}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(func() { http.DefaultClient.CloseIdleConnections(); srv.Close(); s.Close() })
	w := &world{t, srv.URL}
	one, two := []string{"X-CleverTap-Account-Id", "ONE", "X-CleverTap-Passcode", "p1"}, []string{"X-CleverTap-Account-Id", "TWO", "X-CleverTap-Passcode", "p2"}
	w.do("POST", "/1/upload", `{"d":[{"type":"profile","identity":"a","profileData":{}}]}`, one...)
	if _, m := w.do("GET", "/1/profile.json?identity=a", "", one...); m["status"] != "success" {
		t.Error(m)
	}
	if _, m := w.do("GET", "/1/profile.json?identity=a", "", two...); m["status"] != "fail" {
		t.Error(m)
	}
	if code, _ := w.do("GET", "/1/profile.json?identity=a", "", "X-CleverTap-Account-Id", "TWO", "X-CleverTap-Passcode", "p1"); code != 401 {
		t.Errorf("another account's passcode: %d", code)
	}
}

func TestKnobsChooseTheCodeAndTheFailureWith200(t *testing.T) {
	w := newWorld(t, Knobs{PartialPattern: "^x", PartialCode: 515})
	_, m := w.do("POST", "/1/upload", `{"d":[{"type":"profile","identity":"x","profileData":{"Email":"a@example.org"}},{"type":"profile","identity":"x2","profileData":{}}]}`)
	if m["processed"] != 1.0 || m["unprocessed"].([]any)[0].(map[string]any)["code"] != 515.0 {
		t.Errorf("%v", m)
	}
	w.do("PUT", "/sandbox/knobs", `{"fail_with_200":true}`)
	if code, m := w.do("POST", "/1/upload", `{"d":[]}`); code != 200 || m["status"] != "fail" {
		t.Errorf("%d %v", code, m)
	}
}

// A process that is killed runs no cleanup: the file has no name from the start.
func TestAListFileLeavesNothingInTheTemporaryFolder(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	w := newWorld(t, Knobs{})
	w.do("POST", "/1/upload", `{"d":[{"type":"profile","identity":"a","profileData":{}}]}`)
	_, m := w.do("POST", "/get_custom_list_segment_url", "")
	url := m["presignedS3URL"].(string)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader("Type,Identity\ni,a\n"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	_ = resp.Body.Close()
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("files %v", left)
	}
	body, _ := json.Marshal(map[string]any{"name": "L", "email": "a@example.org", "filename": "l.csv", "creator": "c", "url": url, "replace": true})
	for range 2 { // the same URL again is good
		w.do("POST", "/upload_custom_list_segment_completed", string(body))
	}
	if _, got := w.segment("L"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("members %v", got)
	}
}
