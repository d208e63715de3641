package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// world is a sandbox behind HTTP.
type world struct {
	t   *testing.T
	url string
}

func newWorld(t *testing.T, k Knobs) *world {
	t.Helper()
	s, err := New(Config{Knobs: k})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(func() { http.DefaultClient.CloseIdleConnections(); srv.Close(); s.Close() })
	return &world{t, srv.URL}
}

func (w *world) do(method, path, body string, head ...string) (int, map[string]any) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("X-CleverTap-Account-Id", DefaultAccountID)
	req.Header.Set("X-CleverTap-Passcode", DefaultPasscode)
	for i := 0; i+1 < len(head); i += 2 {
		req.Header.Set(head[i], head[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	var m map[string]any
	_ = json.Unmarshal(b, &m)
	return resp.StatusCode, m
}

func (w *world) segment(name string) (SegmentInfo, []string) {
	w.t.Helper()
	resp, err := http.Get(w.url + "/sandbox/segments")
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var list Segments
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		w.t.Fatal(err)
	}
	for _, s := range list.Segments {
		if s.Name == name {
			r2, err := http.Get(fmt.Sprintf("%s/sandbox/segments/%d/members", w.url, s.ID))
			if err != nil {
				w.t.Fatal(err)
			}
			defer func() { _ = r2.Body.Close() }()
			var m Members
			if err := json.NewDecoder(r2.Body).Decode(&m); err != nil {
				w.t.Fatal(err)
			}
			return s, m.Members
		}
	}
	return SegmentInfo{}, nil
}

func TestCredentialsAreCheckedAsCleverTapDoes(t *testing.T) {
	w := newWorld(t, Knobs{})
	for what, tc := range map[string]struct {
		head  []string
		code  int
		words any
	}{
		"right":           {nil, 200, nil},
		"unknown account": {[]string{"X-CleverTap-Account-Id", "X"}, 401, "Account ID is not valid"},
		"wrong passcode":  {[]string{"X-CleverTap-Passcode", "X"}, 401, "Invalid Credentials"},
	} {
		if code, m := w.do("GET", "/v1/connect?partner=p", "", tc.head...); code != tc.code || m["error"] != tc.words {
			t.Errorf("%s: %d %v, want %d %v", what, code, m, tc.code, tc.words)
		}
	}
}

func TestUploadStoresTheGoodRecordsAndNamesTheBadByPosition(t *testing.T) {
	w := newWorld(t, Knobs{})
	profile := func(id, data string) string {
		return fmt.Sprintf(`{"type":"profile","identity":%q,"profileData":{%s}}`, id, data)
	}
	records := []struct {
		rec  string
		code float64
	}{
		{profile("a", `"Email":"a@example.org"`), 0},
		{profile("b", `"Email":"nope"`), 515},
		{profile("c", `"Phone":"12"`), 516},
		{profile("d", `"Gender":"X"`), 514},
		{profile("e", `"Employed":"X"`), 517},
		{profile("f", `"Education":"X"`), 518},
		{profile("g", `"Married":"X"`), 519},
		{profile("h", `"Age":"x"`), 520},
		{profile("n/a", `"Name":"x"`), 523},
		{`{"type":"what","identity":"a"}`, 524},
		{`{"type":"profile","identity":"a","ts":0,"profileData":{}}`, 525},
		{`{"type":"event","identity":"a"}`, 509},
		{`{"type":"event","identity":"a","evtName":"Notification Sent"}`, 513},
		{`{"type":"event","identity":"a","evtName":"Bought","evtData":{"x":1}}`, 0},
	}
	var list []string
	want := map[int]float64{}
	for i, r := range records {
		list = append(list, r.rec)
		if r.code != 0 {
			want[i+1] = r.code
		}
	}
	code, m := w.do("POST", "/1/upload", `{"d":[`+strings.Join(list, ",")+`]}`)
	if code != 200 || m["status"] != "partial" || m["processed"] != 2.0 {
		t.Fatalf("%d %v", code, m)
	}
	got := map[int]float64{}
	for _, u := range m["unprocessed"].([]any) {
		e := u.(map[string]any)
		var n int
		text := e["error"].(string)
		if _, err := fmt.Sscanf(text[strings.LastIndex(text, ":")+1:], "%d", &n); err != nil {
			t.Fatal(err)
		}
		got[n] = e["code"].(float64)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("refused %v, want %v", got, want)
	}
	if _, m := w.do("GET", "/1/profile.json?identity=a", ""); m["status"] != "success" {
		t.Errorf("a was not stored: %v", m)
	}
	if _, m := w.do("GET", "/1/profile.json?identity=b", ""); m["status"] != "fail" {
		t.Errorf("b was stored: %v", m)
	}
	if code, m := w.do("POST", "/1/upload", `{"d":`); code != 400 || m["error"] != "Malformed request" {
		t.Errorf("malformed: %d %v", code, m)
	}
}

func TestOperatorsChangeMultiValues(t *testing.T) {
	w := newWorld(t, Knobs{})
	for _, step := range []struct{ data, want string }{
		{`"tags":"a"`, `"a"`},
		{`"tags":{"$add":["b","a"]}`, `["a","b"]`},
		{`"tags":{"$remove":["a"]}`, `["b"]`},
		{`"tags":{"$set":["x"]}`, `["x"]`},
		{`"tags":{"$delete":1}`, `null`},
	} {
		w.do("POST", "/1/upload", `{"d":[{"type":"profile","identity":"u","profileData":{`+step.data+`}}]}`)
		_, m := w.do("GET", "/1/profile.json?identity=u", "")
		data, _ := m["record"].(map[string]any)["profileData"].(map[string]any)
		got, _ := json.Marshal(data["tags"])
		if string(got) != step.want {
			t.Errorf("after %s: %s, want %s", step.data, got, step.want)
		}
	}
}

func message(action, session string, page, total int, ids ...string) string {
	members := []map[string]any{}
	for _, id := range ids {
		m := map[string]any{"mixpanel_distinct_id": id, "email": id + "@example.org"}
		if strings.HasPrefix(id, "ct:") {
			m["mixpanel_distinct_id"], m["$CleverTap_user_id"] = "d-"+id, strings.TrimPrefix(id, "ct:")
		}
		members = append(members, m)
	}
	b, _ := json.Marshal(map[string]any{"action": action, "parameters": map[string]any{
		"mixpanel_cohort_id": "7", "mixpanel_cohort_name": "Lapsed", "mixpanel_session_id": session,
		"page_info": map[string]any{"total_pages": total, "page_count": page}, "members": members,
	}})
	return string(b)
}

const partnerPath = "/partner/mixpanel/cohort"

func TestAFullExportReplacesTheSegmentOnceAllPagesCame(t *testing.T) {
	w := newWorld(t, Knobs{})
	w.do("POST", partnerPath, message("add_members", "", 1, 1, "old", "stays"))
	if code, m := w.do("POST", partnerPath, message("members", "s1", 2, 2, "new")); code != 200 || m["status"] != "success" || m["action"] != "members" {
		t.Fatalf("page 2: %d %v", code, m)
	}
	if _, got := w.segment("Lapsed"); !slices.Equal(got, []string{"old", "stays"}) {
		t.Fatalf("after half of the pages: %v, want the old content", got)
	}
	w.do("POST", partnerPath, message("members", "s1", 2, 2, "new")) // repeated
	w.do("POST", partnerPath, message("members", "s1", 1, 2, "stays", "ct:42"))
	info, got := w.segment("Lapsed")
	if !slices.Equal(got, []string{"42", "new", "stays"}) {
		t.Fatalf("after all pages: %v", got)
	}
	if info.Type != "Partner - Mixpanel" || info.Key != "7" || info.Size != 3 {
		t.Errorf("segment %+v", info)
	}
	w.do("POST", partnerPath, message("members", "s1", 1, 2, "late")) // of a session that is over
	if _, again := w.segment("Lapsed"); !slices.Equal(again, got) {
		t.Errorf("a late page changed the segment to %v", again)
	}
	w.do("POST", partnerPath, message("remove_members", "", 1, 1, "new", "unknown"))
	if _, got := w.segment("Lapsed"); !slices.Equal(got, []string{"42", "stays"}) {
		t.Errorf("after remove: %v", got)
	}
	_, st := w.do("GET", "/sandbox/statistics", "")
	events := st["events"].(map[string]any)
	// old and stays, then new and 42, came; old, then new, went.
	if events["Partner Sync Added"] != 4.0 || events["Partner Sync Removed"] != 2.0 {
		t.Errorf("Partner Sync events: %v", events)
	}
}

func TestPartnerMembersBecomeProfilesAndTheLaterMessageWins(t *testing.T) {
	w := newWorld(t, Knobs{})
	for i := range 7 {
		w.do("POST", partnerPath, strings.Replace(message("add_members", "", 1, 1, "u"), "u@example.org", fmt.Sprintf("u%d@example.org", i), 1))
	}
	w.do("POST", partnerPath, strings.Replace(message("remove_members", "", 1, 1, "u"), "u@example.org", "removed@example.org", 1))
	_, m := w.do("GET", "/1/profile.json?email=u6@example.org", "")
	rec, _ := m["record"].(map[string]any)
	if rec["identity"] != "u" || rec["profileData"].(map[string]any)["Email"] != "u6@example.org" {
		t.Errorf("profile %v", m)
	}
	_, m = w.do("GET", "/sandbox/events", "")
	first := m["events"].([]any)[0].(map[string]any)
	props := first["properties"].(map[string]any)
	if first["event"] != "Partner Sync" || props["Action"] != "Added" || props["Partner Segment ID"] != "7" || props["CT Source"] != "Mixpanel" {
		t.Errorf("event %v", first)
	}
}

func TestTheCustomListTakesKnownUsersAndReplaces(t *testing.T) {
	w := newWorld(t, Knobs{})
	w.do("POST", "/1/upload", `{"d":[{"type":"profile","identity":"a","profileData":{}},{"type":"profile","identity":"b","profileData":{}}]}`)
	list := func(csv string, replace bool) (int, map[string]any) {
		_, m := w.do("POST", "/get_custom_list_segment_url", "")
		url := m["presignedS3URL"].(string)
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, url, bytes.NewReader([]byte(csv)))
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("PUT: %v %v", resp, err)
		}
		_ = resp.Body.Close()
		b, _ := json.Marshal(map[string]any{"name": "L", "email": "a@example.org", "filename": "l.csv", "creator": "c", "url": url, "replace": replace})
		return w.do("POST", "/upload_custom_list_segment_completed", string(b))
	}
	if code, m := list("Type,Identity\ni,a\ni,unknown\n", false); code != 200 || m["Segment ID"] == nil {
		t.Fatalf("%d %v", code, m)
	}
	if info, got := w.segment("L"); !slices.Equal(got, []string{"a"}) || info.Type != "Custom - List Based" {
		t.Fatalf("%+v %v", info, got)
	}
	if code, m := list("Type,Identity\ni,b\n", false); code != 409 || m["error"] != "duplicate_name" {
		t.Fatalf("same name without replace: %d %v", code, m)
	}
	list("Type,Identity\ni,b\n", true)
	if _, got := w.segment("L"); !slices.Equal(got, []string{"b"}) {
		t.Fatalf("after replace: %v", got)
	}
	if code, _ := list("wrong,header\ni,a\n", true); code != 200 {
		t.Fatalf("a bad file is accepted first: %d", code)
	}
	if _, got := w.segment("L"); !slices.Equal(got, []string{"b"}) {
		t.Fatalf("after a bad file: %v, want the last good version", got)
	}
}

func TestTheSixteenthUploadAtOnceIsRefused(t *testing.T) {
	w := newWorld(t, Knobs{LatencyMS: 300})
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for range 20 {
		wg.Go(func() {
			code, _ := w.do("POST", "/1/upload", `{"d":[]}`)
			mu.Lock()
			defer mu.Unlock()
			codes[code]++
		})
	}
	wg.Wait()
	if codes[200] != 15 || codes[429] != 5 {
		t.Fatalf("answers %v, want 15 times 200 and 5 times 429", codes)
	}
}

func TestKnobsRefuseTheirShareAndBadOnesAreNamed(t *testing.T) {
	w := newWorld(t, Knobs{Rate429: 0.3, Rate5xx: 0.3, Seed: 1})
	codes := map[int]int{}
	for range 200 {
		code, _ := w.do("GET", "/v1/connect?partner=p", "")
		codes[code/100]++
		if code == 429 {
			codes[429]++
		}
	}
	if codes[429] < 30 || codes[429] > 90 || codes[5] < 20 || codes[5] > 70 {
		t.Errorf("answers %v", codes)
	}
	if code, m := w.do("PUT", "/sandbox/knobs", `{"rate_429":2}`); code != 400 || !strings.Contains(fmt.Sprint(m["error"]), "rate_429") {
		t.Errorf("share of 2: %d %v", code, m)
	}
	if code, m := w.do("PUT", "/sandbox/knobs", `{"rate429":0.1}`); code != 400 || !strings.Contains(fmt.Sprint(m["error"]), "rate429") {
		t.Errorf("misspelt knob: %d %v", code, m)
	}
}

func TestACampaignSendsTheTwentyEventsOfEachMemberMarkedWithSource(t *testing.T) {
	w := newWorld(t, Knobs{})
	w.do("POST", partnerPath, message("add_members", "", 1, 1, "a", "b"))
	info, _ := w.segment("Lapsed")
	var mu sync.Mutex
	got := map[string]int{}
	tries := 0
	receiver := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if tries++; tries == 1 { // it comes back after a 429
			rw.WriteHeader(429)
			return
		}
		if u, p, _ := r.BasicAuth(); u != "sa" || p != "secret" || r.URL.Query().Get("project_id") != "9" || r.Header.Get("Content-Encoding") != "gzip" {
			rw.WriteHeader(400)
			return
		}
		var events []struct {
			Event      string
			Properties map[string]any
		}
		if err := json.NewDecoder(mustGunzip(t, r.Body)).Decode(&events); err != nil {
			t.Error(err)
		}
		for _, e := range events {
			if e.Properties["$source"] != "clevertap" || len(fmt.Sprint(e.Properties["$insert_id"])) != 36 {
				t.Errorf("event %v", e)
			}
			got[fmt.Sprint(e.Properties["distinct_id"])+" "+e.Event]++
		}
		_, _ = fmt.Fprintf(rw, `{"code":200,"num_records_imported":%d}`, len(events))
	}))
	defer receiver.Close()
	b, _ := json.Marshal(Campaign{Segment: info.ID, Name: "n", ImportURL: receiver.URL + "/import", ProjectID: "9", Username: "sa", Secret: "secret"})
	code, m := w.do("POST", "/sandbox/campaign", string(b))
	if code != 200 || m["events"] != 40.0 || len(got) != 40 {
		t.Fatalf("%d %v, %d different events", code, m, len(got))
	}
}

func TestThePagesShowSegmentsAndEscapeNames(t *testing.T) {
	w := newWorld(t, Knobs{})
	w.do("POST", partnerPath, strings.Replace(message("add_members", "", 1, 1, "a"), "Lapsed", "<b>Lapsed</b>", 1))
	resp, err := http.Get(w.url + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(resp.Body)
	if page := string(b); !strings.Contains(page, "Partner - Mixpanel") || !strings.Contains(page, "&lt;b&gt;Lapsed") || strings.Contains(page, "<b>Lapsed") {
		t.Errorf("page:\n%s", page)
	}
}

func TestASlowCustomListIsProcessedLaterAndCloseWaitsForNobody(t *testing.T) {
	s, err := New(Config{Knobs: Knobs{ListDelayMS: 60_000}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler())
	w := &world{t, srv.URL}
	_, m := w.do("POST", "/get_custom_list_segment_url", "")
	url := m["presignedS3URL"].(string)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader("Type,Identity\n"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	b, _ := json.Marshal(map[string]any{"name": "L", "email": "a@example.org", "filename": "l.csv", "creator": "c", "url": url})
	w.do("POST", "/upload_custom_list_segment_completed", string(b))
	http.DefaultClient.CloseIdleConnections()
	srv.Close()
	done := make(chan struct{})
	go func() { s.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for the list")
	}
}
