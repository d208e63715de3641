package ingestion_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// The projects of the tests by their identity system.
const (
	simplified int64 = 1
	original   int64 = 2
	legacy     int64 = 3
)

// anon is the n-th of some version 4 UUIDs.
func anon(n int) string { return fmt.Sprintf("0b1f0d2e-5c3a-4d7e-9f10-%012d", n) }

// identityRule is what happens in a project, and who is who after it.
type identityRule struct {
	name    string
	project int64
	before  []props // one /import
	events  []props // each an /import of its own
	// owners are the ids of the exported events by insert id, clusters what an id's
	// lookup shows, stored parts of the stored properties by insert id; those behind
	// a "!" must be absent.
	owners, clusters map[string]string
	stored           map[string][]string
	warnings         string
}

func (r *identityRule) run(t *testing.T) {
	h := newHarness(t)
	if len(r.before) > 0 {
		h.importStrict(r.project, r.before...)
	}
	for _, e := range r.events {
		h.importStrict(r.project, e)
		h.tick(time.Second)
	}
	got := map[string]*ingestionv1.ExportedEvent{}
	for _, e := range h.export(r.project) {
		got[e.GetInsertId()] = e
	}
	if sent := len(r.before) + len(r.events); len(got) != sent {
		t.Errorf("%d of %d events are stored", len(got), sent)
	}
	for insert, want := range r.owners {
		if id := got[insert].GetDistinctId(); id != want {
			t.Errorf("event %s is %q's, want %q", insert, id, want)
		}
	}
	for id, want := range r.clusters {
		h.wantCluster(r.project, id, want)
	}
	for insert, parts := range r.stored {
		for _, p := range parts {
			part, absent := strings.CutPrefix(p, "!")
			if strings.Contains(got[insert].GetPropertiesJson(), part) == absent {
				t.Errorf("event %s is stored as %s, want %s", insert, got[insert].GetPropertiesJson(), p)
			}
		}
	}
	if w := h.warnings(r.project); w != r.warnings {
		t.Errorf("warnings %q, want %q", w, r.warnings)
	}
}

// one is an event of name View.
func one(insert, id string, more props) props { return ev("View", start, id, insert, more) }

func identify(insert, id string, more props) props { return ev("$identify", start, id, insert, more) }

func alias(insert, id, alias string) props {
	return ev("$create_alias", start, id, insert, props{"alias": alias})
}

func merge(insert string, ids ...any) props {
	return ev("$merge", start, "", insert, props{"$distinct_ids": ids})
}

func TestEachRuleOfSimplifiedIdentity(t *testing.T) {
	both := func(d, u string) props { return props{"$device_id": d, "$user_id": u} }
	var phones []props
	devices := map[string]string{}
	for i := range 510 {
		phones = append(phones, one(fmt.Sprint("d", i), "", both(fmt.Sprint("D", i), "U")))
		devices[fmt.Sprint("d", i)] = "U"
	}
	for _, r := range []identityRule{
		{name: "user id alone", events: []props{one("a", "", props{"$user_id": "U"})}, owners: map[string]string{"a": "U"}},
		{name: "user id with a device id", events: []props{one("a", "", both("D", "U"))}, owners: map[string]string{"a": "U"}, clusters: map[string]string{"$device:D": "U: $device:D=DEVICE_LINK U=FIRST_SEEN"}},
		{name: "device id alone", events: []props{one("a", "", props{"$device_id": "D"})}, owners: map[string]string{"a": "$device:D"}},
		{name: "distinct_id of a device", events: []props{one("a", "$device:D", nil), one("b", "", both("D", "U"))}, owners: map[string]string{"a": "U", "b": "U"}, stored: map[string][]string{"a": {`!"$device_id"`}}},
		{name: "distinct_id of a user", events: []props{one("a", "U", nil), one("b", "", both("D", "U"))}, owners: map[string]string{"a": "U"}, clusters: map[string]string{"U": "U: U=FIRST_SEEN $device:D=DEVICE_LINK"}, stored: map[string][]string{"a": {`!"$user_id"`}}},
		{name: "distinct_id is overridden by the user id", events: []props{one("a", "other", props{"$user_id": "U"})}, owners: map[string]string{"a": "U"}, clusters: map[string]string{"other": "unknown"}},
		{name: "distinct_id is overridden by the device id", events: []props{one("a", "other", props{"$device_id": "D"})}, owners: map[string]string{"a": "$device:D"}, clusters: map[string]string{"other": "unknown"}},
		{
			name: "the first event with both links earlier ones", events: []props{one("a", "", props{"$device_id": "D"}), one("b", "", both("D", "U")), one("c", "", props{"$device_id": "D"})},
			owners: map[string]string{"a": "U", "b": "U", "c": "U"},
			stored: map[string][]string{"a": {`"$distinct_id_before_identity":"$device:D"`, `"$is_reshuffled":true`, `!"$preshuffle_distinct_id"`}, "b": {`!"$is_reshuffled"`, `!"$distinct_id_before_identity"`}},
		},
		{
			name: "a phone number as device and as user are two ids", events: []props{one("a", "", props{"$device_id": "555"}), one("b", "", props{"$user_id": "555"}), one("c", "", both("555", "U"))},
			owners: map[string]string{"a": "U", "b": "555", "c": "U"}, clusters: map[string]string{"555": "555: 555=FIRST_SEEN"},
		},
		{
			name: "two known users never become one", events: []props{one("a", "", both("D", "U")), one("b", "", both("D", "V")), one("c", "", both("U", "V"))},
			owners: map[string]string{"a": "U", "b": "V", "c": "V"}, clusters: map[string]string{"V": "V: V=FIRST_SEEN $device:U=DEVICE_LINK", "U": "U: $device:D=DEVICE_LINK U=FIRST_SEEN"},
			stored: map[string][]string{"b": {`"$identity_failure_reason":"device_linked_to_another_user"`, `!"$failure_reason"`}}, warnings: "DEVICE_LINK_REFUSED×1",
		},
		{name: "any number of devices", before: phones, owners: devices},
		{
			name: "identify, alias and merge are ordinary events", events: []props{
				identify("a", "U", props{"$anon_distinct_id": "$device:" + anon(1), "$identified_id": "U", "$anon_id": anon(2)}), alias("b", "U", "nick"),
				ev("$merge", start, "U", "c", props{"$distinct_ids": []string{"U", "V"}}), one("d", "nick", nil),
			},
			owners: map[string]string{"a": "U", "b": "U", "c": "U", "d": "nick"}, clusters: map[string]string{"U": "U: U=FIRST_SEEN", "nick": "nick: nick=FIRST_SEEN", "V": "unknown", anon(2): "unknown"},
			stored: map[string][]string{"a": {`"$anon_id":"` + anon(2), `!failure_reason`}, "b": {`"alias":"nick"`, `!failure_reason`}, "c": {`"$distinct_ids":["U","V"]`, `!failure_reason`}},
		},
		{name: "identify carries no link", events: []props{identify("a", "", both("D", "U")), one("b", "", props{"$device_id": "D"})}, owners: map[string]string{"a": "U", "b": "$device:D"}},
		{name: "alias carries no link", events: []props{ev("$create_alias", start, "", "a", both("D", "U")), one("b", "", props{"$device_id": "D"})}, owners: map[string]string{"a": "U", "b": "$device:D"}},
		{name: "any other event carries a link", events: []props{ev("$mp_click", start, "", "a", both("D", "U")), one("b", "", props{"$device_id": "D"})}, owners: map[string]string{"a": "U", "b": "U"}},
	} {
		r.project = simplified
		t.Run(r.name, r.run)
	}
}

func TestEachRuleOfOriginalIdentity(t *testing.T) {
	var nicks []props
	for i := range 499 {
		nicks = append(nicks, alias(fmt.Sprint("n", i), "hub", fmt.Sprint("nick-", i)))
	}
	refused := func(insert, why string) map[string][]string {
		return map[string][]string{insert: {`"$failure_reason":"` + why + `"`, `"$failure_description":"`, `!"$identity_failure_reason"`}}
	}
	for _, r := range []identityRule{
		{
			name: "identify", events: []props{one("a", anon(1), nil), identify("b", "", props{"$identified_id": "U", "$anon_id": anon(1)}), one("c", anon(1), nil)},
			owners: map[string]string{"a": "U", "b": "U", "c": "U"}, clusters: map[string]string{anon(1): "U: " + anon(1) + "=IDENTIFY U=FIRST_SEEN"},
			stored: map[string][]string{"a": {`"$distinct_id_before_identity":"` + anon(1) + `"`, `"$is_reshuffled":true`}, "b": {`"$identified_id":"U"`, `"$anon_id":"` + anon(1) + `"`, `!failure`}},
		},
		{name: "identify as the browser sends it", events: []props{one("a", "$device:"+anon(1), nil), identify("b", "U", props{"$anon_distinct_id": "$device:" + anon(1), "$device_id": anon(1), "$user_id": "U"})}, owners: map[string]string{"a": "U", "b": "U"}},
		{name: "an anonymous id that is no UUID", events: []props{identify("a", "U", props{"$identified_id": "U", "$anon_id": "text"})}, clusters: map[string]string{"text": "unknown"}, stored: refused("a", "anon_id_is_not_uuid_v4"), warnings: "IDENTITY_MERGE_REFUSED×1"},
		{name: "an anonymous id of UUID version 1", events: []props{identify("a", "U", props{"$identified_id": "U", "$anon_id": "0b1f0d2e-5c3a-1d7e-9f10-1234567890ab"})}, stored: refused("a", "anon_id_is_not_uuid_v4"), warnings: "IDENTITY_MERGE_REFUSED×1"},
		{
			name: "an anonymous id of another user", events: []props{identify("a", "U", props{"$anon_id": anon(1)}), identify("b", "V", props{"$anon_id": anon(1)}), one("c", anon(1), nil)},
			owners: map[string]string{"b": "V", "c": "U"}, stored: refused("b", "already_linked_to_another_user"), warnings: "IDENTITY_MERGE_REFUSED×1",
		},
		{name: "identify without ids", events: []props{identify("a", "U", nil)}, stored: refused("a", "missing_ids"), warnings: "IDENTITY_MERGE_REFUSED×1"},
		{name: "identify with ids that are no texts", events: []props{identify("a", "U", props{"$anon_id": 7})}, stored: refused("a", "unreadable_ids"), warnings: "IDENTITY_MERGE_REFUSED×1"},
		{name: "a placeholder as id", events: []props{alias("a", "U", "null")}, clusters: map[string]string{"null": "unknown"}, stored: refused("a", "invalid_id"), warnings: "IDENTITY_MERGE_REFUSED×1"},
		{
			name: "alias", events: []props{one("a", "nick", nil), alias("b", "U", "nick"), one("c", "nick", nil)},
			owners: map[string]string{"a": "U", "b": "U", "c": "U"}, clusters: map[string]string{"nick": "U: U=FIRST_SEEN nick=ALIAS"}, stored: map[string][]string{"b": {`"alias":"nick"`}},
		},
		{name: "many aliases of one id", events: []props{alias("a", "U", "n1"), alias("b", "U", "n2")}, clusters: map[string]string{"n2": "U: U=FIRST_SEEN n1=ALIAS n2=ALIAS"}},
		{name: "an alias of an alias", events: []props{alias("a", "U", "n1"), alias("b", "n1", "n2"), one("c", "n2", nil)}, owners: map[string]string{"c": "U"}, clusters: map[string]string{"n2": "U: U=FIRST_SEEN n1=ALIAS n2=ALIAS"}},
		{
			name: "an alias is one user's only", events: []props{alias("a", "U", "nick"), alias("b", "V", "nick"), one("c", "nick", nil)},
			owners: map[string]string{"c": "U"}, stored: refused("b", "already_linked_to_another_user"), warnings: "IDENTITY_MERGE_REFUSED×1",
		},
		{
			name: "merge", events: []props{one("a", "U", nil), one("b", "V", nil), merge("c", "U", "V"), one("d", "V", nil)},
			owners: map[string]string{"a": "U", "b": "U", "c": "U", "d": "U"}, clusters: map[string]string{"V": "U: U=FIRST_SEEN V=MERGE"}, stored: map[string][]string{"c": {`"$distinct_ids":["U","V"]`}},
		},
		{name: "merge of one id", events: []props{merge("a", "U")}, clusters: map[string]string{"U": "unknown"}, stored: refused("a", "distinct_ids_must_be_two"), warnings: "IDENTITY_MERGE_REFUSED×1"},
		{name: "merge of three ids", events: []props{merge("a", "U", "V", "W")}, clusters: map[string]string{"V": "unknown"}, stored: refused("a", "distinct_ids_must_be_two"), warnings: "IDENTITY_MERGE_REFUSED×1"},
		{name: "merge of ids that are no texts", events: []props{merge("a", "U", 7)}, clusters: map[string]string{"7": "unknown"}, stored: refused("a", "unreadable_ids"), warnings: "IDENTITY_MERGE_REFUSED×1"},
		{name: "the 501st id", before: nicks, events: []props{alias("x", "hub", "one more"), one("y", "one more", nil), one("z", "nick-498", nil)}, owners: map[string]string{"y": "one more", "z": "hub"}, stored: refused("x", "too_many_ids"), warnings: "IDENTITY_MERGE_REFUSED×1"},
		{name: "merge beyond 500 ids", before: nicks, events: []props{one("w", "V", nil), merge("x", "V", "hub")}, owners: map[string]string{"w": "V"}, stored: refused("x", "too_many_ids"), warnings: "IDENTITY_MERGE_REFUSED×1"},
		{name: "device id and user id link nothing", events: []props{one("a", "X", props{"$device_id": "D", "$user_id": "U"})}, owners: map[string]string{"a": "X"}, clusters: map[string]string{"U": "unknown", "$device:D": "unknown", "D": "unknown"}},
		{
			name: "the canonical id stays for the life of the cluster", events: []props{identify("a", "U", props{"$anon_id": anon(1)}), alias("b", "U", "nick"), identify("c", "nick", props{"$anon_id": anon(2)}), merge("d", "nick", "V"), one("e", "V", nil)},
			owners: map[string]string{"a": "U", "b": "U", "c": "U", "d": "U", "e": "U"},
		},
	} {
		r.project = original
		t.Run(r.name, r.run)
	}
}

func TestEachRuleOfLegacyIdentity(t *testing.T) {
	for _, r := range []identityRule{
		{name: "alias", events: []props{one("a", "U", nil), alias("b", "U", "nick"), one("c", "nick", nil)}, owners: map[string]string{"a": "U", "b": "U", "c": "U"}, clusters: map[string]string{"nick": "U: U=FIRST_SEEN nick=ALIAS"}},
		{name: "many aliases of one id", events: []props{alias("a", "U", "n1"), alias("b", "U", "n2"), one("c", "n1", nil), one("d", "n2", nil)}, owners: map[string]string{"c": "U", "d": "U"}},
		{name: "earlier events stay", events: []props{one("a", "nick", nil), alias("b", "U", "nick"), one("c", "nick", nil)}, owners: map[string]string{"a": "nick", "c": "U"}, stored: map[string][]string{"a": {`!"$is_reshuffled"`, `!"$distinct_id_before_identity"`}}},
		{
			name: "only the first link of a user id works", events: []props{one("a", "phone", nil), one("b", "tablet", nil), alias("c", "phone", "U"), alias("d", "tablet", "U"), one("e", "U", nil)},
			owners: map[string]string{"a": "phone", "b": "tablet", "e": "phone"}, clusters: map[string]string{"tablet": "tablet: tablet=FIRST_SEEN"},
			stored: map[string][]string{"d": {`"$failure_reason":"already_linked_to_another_user"`, `"$failure_description":"`}}, warnings: "IDENTITY_MERGE_REFUSED×1",
		},
		{
			name: "identify and merge have no effect", events: []props{identify("a", "U", props{"$identified_id": "U", "$anon_id": anon(1)}), merge("b", "U", "V"), one("c", anon(1), nil), one("d", "V", nil)},
			owners: map[string]string{"a": "U", "b": "", "c": anon(1), "d": "V"}, stored: map[string][]string{"a": {`!failure`}, "b": {`!failure`}},
		},
		{name: "device id and user id link nothing", events: []props{one("a", "X", props{"$device_id": "D", "$user_id": "U"})}, owners: map[string]string{"a": "X"}, clusters: map[string]string{"U": "unknown", "$device:D": "unknown"}},
	} {
		r.project = legacy
		t.Run(r.name, r.run)
	}
}

// What a sender gives as a trace of identity is dropped: an export can be sent again.
func TestTracesOfIdentityAreNotTheSendersToGive(t *testing.T) {
	r := identityRule{project: original, events: []props{one("a", "U", props{"$is_reshuffled": true, "$failure_reason": "x", "$failure_description": "x", "$distinct_id_before_identity": "x"}), alias("b", "U", "U")}, stored: map[string][]string{"a": {`!reshuffled`, `!failure`, `!before`}, "b": {`!failure`}}}
	r.run(t)
}

func TestIdentifyAndAliasAreTakenByTrackAndMergeIsNot(t *testing.T) {
	h := newHarness(t)
	for i, c := range []struct {
		event  props
		answer string
		id     string
		want   string
	}{
		{identify("a", "", props{"$identified_id": "U", "$anon_id": anon(1)}), "1", anon(1), "U: " + anon(1) + "=IDENTIFY U=FIRST_SEEN"},
		{identify("b", "V", props{"$anon_distinct_id": "$device:" + anon(2)}), "1", anon(2), "V: " + anon(2) + "=IDENTIFY V=FIRST_SEEN"},
		{alias("c", "W", "nick"), "1", "nick", "W: W=FIRST_SEEN nick=ALIAS"},
		{merge("d", "V", "W"), "0", "W", "W: W=FIRST_SEEN nick=ALIAS"},
	} {
		c.event["properties"].(props)["token"] = "tok-2"
		r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/x-www-form-urlencoded", Body: form("data", string(toJSON(t, c.event)))})
		if string(r.GetBody()) != c.answer {
			t.Errorf("%d: answered %s, want %s", i, r.GetBody(), c.answer)
		}
		h.wantCluster(original, c.id, c.want)
	}
}

// A link is seen by cohorts, MTU and export at once; LEGACY's by later events only.
func TestALinkCountsForCohortsUsageAndExportOfEarlierEvents(t *testing.T) {
	for projectID, links := range map[int64][]props{
		simplified: {one("x", "", props{"$device_id": "D", "$user_id": "U"})},
		original:   {alias("x", "U", "$device:D")},
		legacy:     {alias("x", "U", "$device:D")},
	} {
		h := newHarness(t)
		h.importStrict(projectID, ev("Cart", start, "$device:D", "a", nil), ev("Cart", start, "U", "b", nil))
		h.tick(time.Second)
		h.importStrict(projectID, links...)
		cohort, users, owner := "U", int64(1), "U"
		if projectID == legacy {
			cohort, users, owner = "", 2, "$device:D"
		}
		if got := h.ids(projectID, h.evaluate(projectID, did(2, "Cart")).leaves[0]); got != cohort {
			t.Errorf("project %d: the cohort is %q, want %q", projectID, got, cohort)
		}
		if u := h.month(projectID, ""); u.GetUsers() != users {
			t.Errorf("project %d: %d users, want %d", projectID, u.GetUsers(), users)
		}
		if got := h.owners(projectID)["a"]; got != owner {
			t.Errorf("project %d: the earlier event is %q's, want %q", projectID, got, owner)
		}
	}
}

// The profile of a device is a user's of its own, and stays behind at the link.
func TestSimplifiedCarriesNoProfileOverToTheUser(t *testing.T) {
	h := newHarness(t)
	h.engage(simplified, set("$device:D", props{"plan": "gold"}))
	if p := h.profile(simplified, "$device:D"); p["plan"] != "gold" {
		t.Errorf("the device's profile is %v", p)
	}
	h.importStrict(simplified, one("a", "", props{"$device_id": "D", "$user_id": "U"}))
	if p := h.profile(simplified, "U"); p != nil {
		t.Errorf("the user's profile is %v", p)
	}
}

// Any id of a user finds the user: reads need not know the canonical one.
func TestAnyIDOfAUserFindsTheProfile(t *testing.T) {
	for projectID, link := range map[int64]props{
		simplified: one("x", "", props{"$device_id": "D", "$user_id": "U"}),
		original:   alias("x", "U", "$device:D"),
		legacy:     alias("x", "U", "$device:D"),
	} {
		h := newHarness(t)
		h.engage(projectID, set("U", props{"n": 1}))
		h.importStrict(projectID, link)
		h.engage(projectID, set("$device:D", props{"m": 2}))
		p, err := h.data.GetProfile(context.Background(), &ingestionv1.GetProfileRequest{Parent: fmt.Sprintf("projects/%d", projectID), DistinctId: "$device:D"})
		if got := p.GetProfile().GetProperties().AsMap(); err != nil || p.GetProfile().GetDistinctId() != "U" || got["n"] != 1.0 || got["m"] != 2.0 {
			t.Errorf("project %d: %v, %v", projectID, p, err)
		}
		if got := h.query(&ingestionv1.QueryProfilesRequest{Parent: fmt.Sprintf("projects/%d", projectID), DistinctIds: []string{"$device:D"}}); strings.Join(got.ids, " ") != "U" {
			t.Errorf("project %d: the query finds %v", projectID, got.ids)
		}
	}
}

// The system that the first data came under stays, whatever the registry says later.
func TestTheIdentitySystemIsFrozenWithTheFirstData(t *testing.T) {
	h := newHarness(t)
	h.importStrict(simplified, one("a", "U", nil))
	h.tick(time.Second)
	changed := *h.reg.projects[simplified]
	changed.Identity = h.reg.projects[original].Identity
	h.reg.projects[simplified] = &changed
	h.restart()
	h.importStrict(simplified, alias("b", "U", "nick"), one("c", "", props{"$device_id": "D", "$user_id": "U"}))
	h.wantCluster(simplified, "U", "U: U=FIRST_SEEN $device:D=DEVICE_LINK")
	h.wantCluster(simplified, "nick", "unknown")
}

// Each of the six partner properties aliases its value, in every system.
func TestEachPartnerPropertyAliasesItsValue(t *testing.T) {
	for _, property := range []string{"$CleverTap_user_id", "$leanplum_user_id", "$moengage_user_id", "$onesignal_user_id", "$apptimize_user_id", "$vwo_user_id"} {
		t.Run(property, func(t *testing.T) {
			for _, projectID := range []int64{simplified, original, legacy} {
				h := newHarness(t)
				h.importStrict(projectID, one("a", "p1", nil)) // nobody's yet
				h.engage(projectID, set("U", props{property: "p1"}), props{"$distinct_id": "V", "$set_once": props{property: "p2"}}, set("W", props{property: "W"}), set("X", props{property: ""}))
				h.engage(projectID, set("Y", props{property: "p2"}), set("Z", props{property: "U"})) // others'
				h.importStrict(projectID, one("b", "p1", nil), one("c", "p2", nil), one("d", "W", nil), one("e", "U", nil))
				got := h.owners(projectID)
				for insert, want := range map[string]string{"a": "U", "b": "U", "c": "V", "d": "W", "e": "U"} {
					if got[insert] != want {
						t.Errorf("project %d: event %s is %q's, want %q", projectID, insert, got[insert], want)
					}
				}
				if w := h.warnings(projectID); w != "PARTNER_ALIAS_CONFLICT×2" {
					t.Errorf("project %d: warnings %q", projectID, w)
				}
				h.wantCluster(projectID, "p2", "V: V=FIRST_SEEN p2=PARTNER_ALIAS")
			}
		})
	}
}

func TestOtherPropertiesAliasNothing(t *testing.T) {
	h := newHarness(t)
	h.engage(original, set("U", props{"$braze_external_id": "p1", "$clevertap_user_id": "p2", "$iterable_user_id": "p3", "$email": "p4"}))
	for _, id := range []string{"p1", "p2", "p3", "p4"} {
		h.wantCluster(original, id, "unknown")
	}
}

func TestAPartnerIDBeyond500IDsIsNotLinked(t *testing.T) {
	h := newHarness(t)
	var nicks []props
	for i := range 499 {
		nicks = append(nicks, alias(fmt.Sprint("n", i), "hub", fmt.Sprint("nick-", i)))
	}
	h.importStrict(original, nicks...)
	h.engage(original, set("hub", props{clevertap: "p1"}))
	h.wantCluster(original, "p1", "unknown")
	if w := h.warnings(original); w != "PARTNER_ALIAS_CONFLICT×1" {
		t.Errorf("warnings %q", w)
	}
	_, err := h.who.LookupIdentity(context.Background(), &ingestionv1.LookupIdentityRequest{Parent: "projects/2", DistinctId: "p1"})
	if status.Code(err) == codes.OK {
		t.Error("the value is somebody's")
	}
}
