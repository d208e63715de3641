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

// cluster is "canonical: id=REASON …" of the user an id belongs to.
func (h *harness) cluster(projectID int64, id string) string {
	h.t.Helper()
	r, err := h.who.LookupIdentity(context.Background(), &ingestionv1.LookupIdentityRequest{Parent: fmt.Sprintf("projects/%d", projectID), DistinctId: id})
	if status.Code(err) != codes.OK {
		return "unknown"
	}
	out := r.GetCanonicalId() + ":"
	for _, i := range r.GetIds() {
		out += " " + i.GetId() + "=" + strings.TrimPrefix(i.GetReason().String(), "REASON_")
	}
	return out
}

func (h *harness) wantCluster(projectID int64, id, want string) {
	h.t.Helper()
	if got := h.cluster(projectID, id); got != want {
		h.t.Errorf("identity of %s: %q, want %q", id, got, want)
	}
}

func (h *harness) warnings(projectID int64) string {
	h.t.Helper()
	r, err := h.data.ListWarnings(context.Background(), &ingestionv1.ListWarningsRequest{Parent: fmt.Sprintf("projects/%d", projectID)})
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for _, w := range r.GetWarnings() {
		out = append(out, fmt.Sprintf("%s×%d", w.GetKind(), w.GetCount()))
	}
	return strings.Join(out, " ")
}

// owners is "event id" of each exported event, by its insert id.
func (h *harness) owners(projectID int64) map[string]string {
	h.t.Helper()
	out := map[string]string{}
	for _, e := range h.export(projectID) {
		out[e.GetInsertId()] = e.GetDistinctId()
	}
	return out
}

func (h *harness) tick(d time.Duration) { h.now.Add(d.Milliseconds()) }

func TestSimplifiedLinksADeviceToItsFirstUserRetroactively(t *testing.T) {
	h := newHarness(t)
	h.importStrict(1,
		ev("View", start, "", "s1", props{"$device_id": "D"}),
		ev("View", start, "$device:D", "s2", nil),
		ev("View", start, "other", "s3", props{"$user_id": "U2"}), // overridden
	)
	if got := h.owners(1); got["s1"] != "$device:D" || got["s2"] != "$device:D" || got["s3"] != "U2" {
		t.Fatalf("before the link: %v", got)
	}
	h.tick(time.Second)
	h.importStrict(1, ev("Login", start, "", "s4", props{"$device_id": "D", "$user_id": "U"}), ev("View", start, "", "s5", props{"$device_id": "D"}))
	if got := h.owners(1); got["s1"] != "U" || got["s2"] != "U" || got["s4"] != "U" || got["s5"] != "U" {
		t.Errorf("after the link: %v", got)
	}
	h.wantCluster(1, "$device:D", "U: $device:D=DEVICE_LINK U=FIRST_SEEN")
	if got := h.ids(1, h.evaluate(1, did(3, "View")).leaves[0]); got != "U" {
		t.Errorf("behaviour over the cluster: %q", got)
	}
	// Another user on the same device: the first link stays.
	h.importStrict(1, ev("Login", start, "", "s6", props{"$device_id": "D", "$user_id": "U2"}))
	for _, e := range h.export(1) {
		if e.GetInsertId() == "s6" && (e.GetDistinctId() != "U2" || !strings.Contains(e.GetPropertiesJson(), `"$identity_failure_reason":"device_linked_to_another_user"`)) {
			t.Errorf("refused link stored as %v", e)
		}
		if e.GetInsertId() == "s1" && !strings.Contains(e.GetPropertiesJson(), `"$distinct_id_before_identity":"$device:D"`) {
			t.Errorf("the id before identity is lost: %v", e)
		}
	}
	// $identify, $create_alias and $merge do nothing here.
	h.importStrict(1, ev("$create_alias", start, "U", "s7", props{"alias": "nick"}), ev("$merge", start, "U", "s8", props{"$distinct_ids": []string{"U", "U2"}}))
	h.wantCluster(1, "nick", "unknown")
	if w := h.warnings(1); w != "DEVICE_LINK_REFUSED×1" {
		t.Errorf("warnings %q", w)
	}
	// Profile data of the device is not carried over; the user's is the device's too.
	h.engage(1, set("$device:D", props{"plan": "gold"}))
	p, err := h.data.GetProfile(context.Background(), &ingestionv1.GetProfileRequest{Parent: "projects/1", DistinctId: "U"})
	if err != nil || p.GetProfile().GetProperties().AsMap()["plan"] != "gold" {
		t.Errorf("profile %v, %v", p, err)
	}
}

func TestOriginalLinksByIdentifyAliasAndMerge(t *testing.T) {
	h := newHarness(t)
	const anon, anon2 = "0b1f0d2e-5c3a-4d7e-9f10-1234567890ab", "0b1f0d2e-5c3a-4d7e-9f10-1234567890ac"
	h.importStrict(2, ev("View", start, "$device:"+anon, "o1", nil), ev("View", start, "mail", "o2", nil), ev("View", start, "late", "o3", nil))
	h.engage(2, set("mail", props{"city": "Pune", "plan": "free"}), set("user", props{"plan": "gold"}))
	h.tick(time.Second)
	h.importStrict(2,
		ev("$identify", start, "user", "o4", props{"$anon_distinct_id": "$device:" + anon}), // as the browser sends it
		ev("$create_alias", start, "user", "o5", props{"alias": "mail"}),
		ev("$identify", start, "someone", "o6", props{"$identified_id": "someone", "$anon_id": anon}),   // already user's
		ev("$identify", start, "someone", "o7", props{"$identified_id": "someone", "$anon_id": "uuid"}), // no UUID
		ev("$identify", start, "someone", "o8", props{"$identified_id": "someone", "$anon_id": anon2}),
	)
	got := h.owners(2)
	if got["o1"] != "user" || got["o2"] != "user" || got["o6"] != "someone" || got["o3"] != "late" {
		t.Errorf("owners %v", got)
	}
	h.wantCluster(2, anon2, "someone: "+anon2+"=IDENTIFY someone=FIRST_SEEN")
	p, err := h.data.GetProfile(context.Background(), &ingestionv1.GetProfileRequest{Parent: "projects/2", DistinctId: "mail"})
	if err != nil || p.GetProfile().GetDistinctId() != "user" || p.GetProfile().GetProperties().AsMap()["plan"] != "gold" || p.GetProfile().GetProperties().AsMap()["city"] != "Pune" {
		t.Errorf("merged profile %v, %v", p, err)
	}
	// Go's Merge: form data, no strict, the digit as the answer.
	body := form("data", string(toJSON(t, props{"event": "$merge", "properties": props{"$distinct_ids": []string{"user", "someone"}}})))
	r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: "application/x-www-form-urlencoded", Authorization: basic("secret-2", ""), Body: body})
	if string(r.GetBody()) != "1" {
		t.Errorf("$merge answered %s", r.GetBody())
	}
	if c := h.cluster(2, anon2); !strings.HasPrefix(c, "user:") || strings.Count(c, "=") != 5 {
		t.Errorf("after $merge: %s", c)
	}
	if w := h.warnings(2); w != "IDENTITY_MERGE_REFUSED×2" {
		t.Errorf("warnings %q", w)
	}
	// $merge is not taken by /track.
	r = h.raw(&ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/json", Body: toJSON(t, ev("$merge", start, "user", "o9", props{"token": "tok-2", "$distinct_ids": []string{"user", "late"}}))})
	if string(r.GetBody()) != "0" {
		t.Errorf("$merge on /track answered %s", r.GetBody())
	}
}

func TestOriginalWritesTheProfileOfTheBrowsersAnonymousID(t *testing.T) {
	h := newHarness(t)
	const anon = "0b1f0d2e-5c3a-4d7e-9f10-1234567890ab"
	h.engage(2, set("$device:"+anon, props{"before": 1}))
	h.importStrict(2, ev("View", start, "$device:"+anon, "o1", nil), ev("$identify", start, "user", "o2", props{"$anon_distinct_id": "$device:" + anon}))
	h.engage(2, set("$device:"+anon, props{"after": 1}))
	p, err := h.data.GetProfile(context.Background(), &ingestionv1.GetProfileRequest{Parent: "projects/2", DistinctId: "user"})
	if got := p.GetProfile().GetProperties().AsMap(); err != nil || got["before"] != 1.0 || got["after"] != 1.0 {
		t.Errorf("profile %v, %v", got, err)
	}
	h.wantCluster(2, "user", "user: "+anon+"=IDENTIFY user=FIRST_SEEN")
}

func TestOriginalClustersStopAt500IDs(t *testing.T) {
	h := newHarness(t)
	var events []props
	for i := range 505 {
		events = append(events, ev("$create_alias", start, "hub", fmt.Sprint("c", i), props{"alias": fmt.Sprint("alias-", i)}))
	}
	h.importStrict(2, events...)
	if c := h.cluster(2, "hub"); strings.Count(c, "=") != 500 {
		t.Errorf("the cluster has %d ids", strings.Count(c, "="))
	}
	if w := h.warnings(2); w != "IDENTITY_MERGE_REFUSED×6" {
		t.Errorf("warnings %q", w)
	}
}

func TestLegacyAliasHasNoEffectOnEarlierEvents(t *testing.T) {
	h := newHarness(t)
	h.importStrict(3, ev("View", start, "first", "l1", nil), ev("View", start, "user", "l2", nil), ev("View", start, "second", "l3", nil))
	h.importStrict(3, ev("$create_alias", start, "first", "l4", props{"alias": "user"}), ev("View", start, "user", "l5", nil))
	h.importStrict(3, ev("$create_alias", start, "second", "l6", props{"alias": "user"}))
	got := h.owners(3)
	if got["l2"] != "user" || got["l5"] != "first" || got["l3"] != "second" {
		t.Errorf("owners %v", got)
	}
	if w := h.warnings(3); w != "IDENTITY_MERGE_REFUSED×1" {
		t.Errorf("warnings %q", w)
	}
}

func TestPartnerIDsBecomeAliasesOfExactlyOneUser(t *testing.T) {
	for _, projectID := range []int64{1, 2, 3} {
		h := newHarness(t)
		id := func(n int) string { return fmt.Sprintf("p%d", n) }
		ct := "$CleverTap_user_id"
		// Campaign events came before anyone knew the id.
		h.importStrict(projectID, ev("Notification Sent", start, "ct-1", id(1), props{"$source": "clevertap"}))
		h.engage(projectID, set("a", props{ct: "ct-1", "n": 1}), set("b", props{ct: "ct-2"}), set("c", props{ct: "ct-2"}), set("d", props{ct: "a"}), set("e", props{ct: "e"}), set("f", props{"n": 1}), set("g", props{ct: "n/a"}), set("h", props{ct: "n/a"}))
		h.importStrict(projectID, ev("Notification Viewed", start, "ct-2", id(2), props{"$source": "clevertap"}))
		if got := h.owners(projectID); got[id(1)] != "a" || got[id(2)] != "b" {
			t.Errorf("project %d: campaign events went to %v", projectID, got)
		}
		ev := h.evaluate(projectID)
		state := map[string]string{}
		partner := map[string]bool{}
		for _, m := range h.members(projectID, ev.identified) {
			state[m.GetDistinctId()] = fmt.Sprintf("%s/%v", m.GetPartnerId(), m.GetPartnerIdConflict())
			if m.GetPartnerIdInvalid() {
				state[m.GetDistinctId()] += "/invalid"
			}
			if m.GetPartnerId() != "" && partner[m.GetPartnerId()] {
				t.Errorf("two users have partner id %s", m.GetPartnerId())
			}
			partner[m.GetPartnerId()] = true
		}
		for who, want := range map[string]string{"a": "ct-1/false", "b": "ct-2/false", "c": "/true", "d": "/true", "e": "e/false", "f": "/false", "g": "/false/invalid", "h": "/false/invalid"} {
			if state[who] != want {
				t.Errorf("project %d: %s has partner id %s, want %s", projectID, who, state[who], want)
			}
		}
		if w := h.warnings(projectID); w != "PARTNER_ALIAS_CONFLICT×2 PARTNER_ID_INVALID×2" {
			t.Errorf("project %d: warnings %q", projectID, w)
		}
		// A new value of one's own ends the conflict.
		h.engage(projectID, set("c", props{ct: "ct-3"}))
		for _, m := range h.members(projectID, ev.identified) {
			if m.GetDistinctId() == "c" && (m.GetPartnerIdConflict() || m.GetPartnerId() != "ct-3") {
				t.Errorf("c after the correction: %v", m)
			}
		}
	}
}

func TestChangedUsersAreWhatADynamicRunMustLookAt(t *testing.T) {
	h := newHarness(t)
	h.engage(1, set("a", props{"x": 1}), set("b", props{"x": 1}), set("c", props{"x": 1}))
	h.importStrict(1, ev("View", start, "", "v1", props{"$device_id": "D"}))
	mark := h.evaluate(1).mark.GetProfileSeq()
	changed := func(since uint64) string {
		r, err := h.eval.ListChangedUsers(context.Background(), &ingestionv1.ListChangedUsersRequest{Parent: "projects/1", SinceSeq: since, UntilSeq: h.evaluate(1).mark.GetProfileSeq()})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(r.GetUsers().GetCount())
	}
	if got := changed(mark); got != "0" {
		t.Errorf("nothing changed, yet %s users did", got)
	}
	h.engage(1, set("b", props{"x": 2}))
	if got := changed(mark); got != "1" {
		t.Errorf("one profile changed, yet %s users did", got)
	}
	h.importStrict(1, ev("Login", start, "", "v2", props{"$device_id": "D", "$user_id": "c"}))
	if got := changed(mark); got != "3" {
		t.Errorf("a profile and a merge (two users) changed, yet %s users did", got)
	}
	if got := changed(0); got != "4" {
		t.Errorf("from the beginning %s users changed, want 4", got)
	}
}
