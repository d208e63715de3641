package ingestion_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

func TestPropertiesThatTheServerAddsAreNotTheSendersToSay(t *testing.T) {
	h := newHarness(t)
	again := props{"$import": false, "$distinct_id_before_identity": "theirs", "$identity_failure_reason": "theirs", "plan": "é\u0001"}
	with := func(more props) props {
		p := props{}
		for _, m := range []props{again, more} {
			for k, v := range m {
				p[k] = v
			}
		}
		return p
	}
	h.importStrict(1,
		ev("View", start, "", "a1", with(props{"$device_id": "D"})),
		ev("View", start, "", "a2", with(props{"$device_id": "D", "$user_id": "U"})),
		ev("View", start, "", "a3", with(props{"$device_id": "D", "$user_id": "V"})), // refused
	)
	want := map[string]map[string]any{
		"a1": {"$import": true, "$distinct_id_before_identity": "$device:D", "$identity_failure_reason": nil},
		"a2": {"$import": true, "$distinct_id_before_identity": nil, "$identity_failure_reason": nil},
		"a3": {"$import": true, "$distinct_id_before_identity": nil, "$identity_failure_reason": "device_linked_to_another_user"},
	}
	for _, e := range h.export(1) {
		if !jsontext.Value(e.GetPropertiesJson()).IsValid() {
			t.Errorf("%s: not valid JSON: %s", e.GetInsertId(), e.GetPropertiesJson())
		}
		got := map[string]any{}
		mustDecode(t, []byte(e.GetPropertiesJson()), &got)
		for k, v := range want[e.GetInsertId()] {
			if got[k] != v || got["plan"] != again["plan"] {
				t.Errorf("%s: %s is %v, want %v: %s", e.GetInsertId(), k, got[k], v, e.GetPropertiesJson())
			}
		}
	}
}

func TestCallsOfAnotherIdentitySystemHaveNoEffectAtAll(t *testing.T) {
	h := newHarness(t)
	h.importStrict(3, ev("$identify", start, "u", "l1", props{"$anon_id": 7}), ev("$merge", start, "u", "l2", props{"$distinct_ids": "x"}))
	if w := h.warnings(3); w != "" {
		t.Errorf("warnings %q", w)
	}
}

func TestAnUpdateThatFailsLeavesNoUserAndIsReported(t *testing.T) {
	h := newHarness(t)
	for _, c := range []struct{ body, field string }{
		{`{"$token":"tok-1","$distinct_id":"a","$add":{"n":"text"}}`, "$add.n"},
		{`{"$token":"tok-1","$distinct_id":"b","$union":{"l":[true]}}`, "$union.l"},
		{`{"$token":"tok-1","$distinct_id":"c","$remove":{"l":[1]}}`, "$remove.l"},
		{`{"$token":"tok-1","$distinct_id":"known","$remove":{"l":[1]}}`, "$remove.l"}, // a user without a profile
	} {
		if c.field == "$remove.l" {
			h.importStrict(1, ev("View", start, "known", "k1", nil))
		}
		r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: engage, RawQuery: "strict=1", ContentType: "application/json", Body: []byte(c.body)})
		var out struct {
			Num    int                      `json:"num_records_imported"`
			Failed []struct{ Field string } `json:"failed_records"`
		}
		if r.GetStatus() == 400 {
			mustDecode(t, r.GetBody(), &out)
		}
		if len(out.Failed) != 1 || out.Failed[0].Field != c.field || out.Num != 0 {
			t.Errorf("%s answered %s", c.body, r.GetBody())
		}
	}
	for _, id := range []string{"a", "b", "c"} {
		h.wantCluster(1, id, "unknown")
	}
}

func TestIdentityCallsReadTheirOwnIDsOnly(t *testing.T) {
	h := newHarness(t)
	h.importStrict(2,
		ev("$create_alias", start, "u", "c1", props{"alias": "nick", "$anon_id": 7, "$distinct_ids": "x"}),
		ev("$merge", start, "", "c2", props{"alias": 7, "$distinct_ids": []string{"u", "v"}}),
	)
	h.wantCluster(2, "v", "u: nick=ALIAS u=FIRST_SEEN v=MERGE")
	if w := h.warnings(2); w != "" {
		t.Errorf("warnings %q", w)
	}
}

func TestAnInferredIDIsAnIDAndTellsEventsApart(t *testing.T) {
	h := newHarness(t)
	const anon = "0b1f0d2e-5c3a-4d7e-9f10-1234567890a"
	h.importStrict(2,
		ev("$identify", start, "", "same", props{"$identified_id": "a", "$anon_id": anon + "1"}),
		ev("$identify", start, "", "same", props{"$identified_id": "b", "$anon_id": anon + "2"}),  // another user's, so another event
		ev("$identify", start, "a", "same", props{"$identified_id": "a", "$anon_id": anon + "1"}), // the first again, written out
		ev("$identify", start, "", "banned", props{"$identified_id": "null", "$anon_id": anon + "3"}),
		ev("$merge", start, "", "banned2", props{"$distinct_ids": []string{"n/a", "a"}}),
	)
	got := map[string]int{}
	for _, e := range h.export(2) {
		got[e.GetDistinctId()]++
	}
	if len(got) != 3 || got["a"] != 1 || got["b"] != 1 || got[""] != 2 {
		t.Errorf("events by user: %v", got)
	}
	h.wantCluster(2, "null", "unknown")
	h.wantCluster(2, "n/a", "unknown")
}

func TestNoLinkMakesAnIDThatNoEventMayHave(t *testing.T) {
	h := newHarness(t)
	long := strings.Repeat("z", 256)
	h.importStrict(3, ev("$create_alias", start, "u", "p1", props{"alias": "null"}), ev("$create_alias", start, "u", "p2", props{"alias": strings.Repeat("ä", 200)}))
	h.wantCluster(3, "u", "u: u=FIRST_SEEN")
	if w := h.warnings(3); w != "IDENTITY_MERGE_REFUSED×2" {
		t.Errorf("warnings %q", w)
	}
	h.importStrict(1, ev("View", start, "", "p3", props{"$device_id": long, "$user_id": "U"}))
	h.wantCluster(1, "U", "U: U=FIRST_SEEN")
}

func TestEveryProfileWriteSetsLastSeen(t *testing.T) {
	h := newHarness(t)
	seen := func() any { return h.profile(1, "u")["$last_seen"] }
	h.engage(1, set("u", props{"n": 1}))
	for _, again := range []props{set("u", props{"n": 1}), {"$distinct_id": "u", "$set_once": props{"n": 2}}, {"$distinct_id": "u", "$unset": []string{"none"}}} {
		h.tick(time.Hour)
		h.engage(1, again)
		if got, want := seen(), h.clock().Format("2006-01-02T15:04:05"); got != want {
			t.Errorf("%v: last seen %v, want %v", again, got, want)
		}
	}
	before := seen()
	h.tick(time.Hour)
	h.engage(1, props{"$distinct_id": "u", "$ignore_time": true, "$set": props{"n": 1}})
	h.importStrict(1, ev("View", start, "u", "s1", nil))
	if seen() != before {
		t.Errorf("last seen %v, want %v", seen(), before)
	}
}

func TestDuplicatesCountForTheirOwnProject(t *testing.T) {
	h := newHarness(t)
	body := toJSON(t, []props{
		ev("A", start, "u", "d1", props{"token": "tok-1"}), ev("A", start, "u", "d2", props{"token": "tok-2"}), ev("A", start, "u", "d2", props{"token": "tok-2"}),
	})
	h.raw(&ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/json", Body: body})
	for id, want := range map[int64]int64{1: 0, 2: 1} {
		st, err := h.data.GetDataStatistics(context.Background(), &ingestionv1.GetDataStatisticsRequest{Parent: fmt.Sprintf("projects/%d", id)})
		if err != nil || st.GetDuplicates() != want || st.GetEvents() != 1 {
			t.Errorf("project %d: %v, %v; want %d duplicates", id, st, err, want)
		}
	}
}

func TestAPartnerIDThatMovesInABatchIsTheNewUsersFromThere(t *testing.T) {
	h := newHarness(t)
	h.engage(1, set("$device:D", props{clevertap: "P"}), set("waits", props{clevertap: "P"}))
	h.importStrict(1, ev("View", start, "P", "m1", nil)) // known from now on
	h.importStrict(1,
		ev("View", start, "P", "m2", nil),
		ev("Login", start, "", "m3", props{"$device_id": "D", "$user_id": "U"}), // the device's profile is gone, and P free
		ev("View", start, "P", "m4", nil),
	)
	if got := h.owners(1); got["m1"] != "U" || got["m2"] != "U" || got["m4"] != "waits" {
		t.Errorf("owners %v", got)
	}
}

func TestABrokenLineIsReportedOnce(t *testing.T) {
	h := newHarness(t)
	for e, body := range map[ingestionv1.IngestRawRequest_Endpoint]string{imports: "[1]x\n7 7", engage: "[1]x\n7 7"} {
		r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: e, RawQuery: "strict=1", ContentType: "application/x-ndjson", Authorization: basic("secret-1", ""), Body: []byte(body)})
		if strings.Count(string(r.GetBody()), `"index":0`) != 1 || strings.Count(string(r.GetBody()), `"index":1`) != 1 {
			t.Errorf("%v: %s", e, r.GetBody())
		}
	}
}
