package ingestion_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

const clevertap = "$CleverTap_user_id"

// partners is "partner id", "!conflict", "!invalid" or "-" of each identified
// user; it fails the test when two users would be delivered under one id.
func (h *harness) partners(projectID int64) map[string]string {
	h.t.Helper()
	out, delivered := map[string]string{}, map[string]string{}
	for _, m := range h.members(projectID, h.evaluate(projectID).identified) {
		who := m.GetDistinctId()
		id, state := m.GetPartnerId(), m.GetPartnerId()
		switch {
		case m.GetPartnerIdConflict():
			id, state = "", "!conflict"
		case m.GetPartnerIdInvalid():
			id, state = "", "!invalid"
		case id == "":
			id, state = who, "-"
		}
		out[who] = state
		if other, ok := delivered[id]; ok && id != "" {
			h.t.Errorf("project %d: %s and %s are both delivered as %s", projectID, who, other, id)
		}
		delivered[id] = who
	}
	return out
}

func (h *harness) wantPartners(projectID int64, want map[string]string) {
	h.t.Helper()
	got := h.partners(projectID)
	for who, state := range want {
		if got[who] != state {
			h.t.Errorf("project %d: partner id of %s is %q, want %q", projectID, who, got[who], state)
		}
	}
}

func TestNumericPartnerIDsCountAsTheirDecimalText(t *testing.T) {
	h := newHarness(t)
	body := func(s string) {
		t.Helper()
		if r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: engage, ContentType: "application/json", Body: []byte(s)}); string(r.GetBody()) != "1" {
			t.Fatalf("engage answered %s", r.GetBody())
		}
	}
	want := map[string]string{}
	for i, c := range [][2]string{
		{`123456`, "123456"}, {`12345678901234567890123`, "12345678901234567890123"}, {`1.5e3`, "1500"}, {`1e22`, "10000000000000000000000"},
		{`12.50`, "12.5"}, {`77.0`, "77"}, {`-0`, "!invalid"}, {`"007"`, "007"}, {`""`, "-"}, {`null`, "-"}, {`true`, "!invalid"}, {`[1]`, "!invalid"}, {`{"id":1}`, "!invalid"}, {`1e300`, "!invalid"},
	} {
		who := fmt.Sprint("u", i)
		want[who] = c[1]
		op := "$set"
		if i%2 == 1 {
			op = "$set_once"
		}
		body(fmt.Sprintf(`[{"$token":"tok-1","$distinct_id":%q,%q:{%q:%s}}]`, who, op, clevertap, c[0]))
	}
	typed, err := structpb.NewStruct(map[string]any{clevertap: 986791})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.in.UpdateProfiles(context.Background(), &ingestionv1.UpdateProfilesRequest{Parent: "projects/1", Updates: []*ingestionv1.ProfileUpdate{{DistinctId: "typed", Set: typed}, {DistinctId: "second", Set: typed}}}); err != nil {
		t.Fatal(err)
	}
	want["typed"], want["second"] = "986791", "!conflict"
	h.wantPartners(1, want)
	if w := h.warnings(1); w != "PARTNER_ALIAS_CONFLICT×1 PARTNER_ID_INVALID×5" {
		t.Errorf("warnings %q", w)
	}
	if v := h.profile(1, "u0")[clevertap]; v != 123456.0 {
		t.Errorf("the property is stored as %v", v)
	}
	h.importStrict(1, ev("Notification Sent", start, "123456", "n1", props{"$source": "clevertap"}), ev("Notification Sent", start, "986791", "n2", nil))
	if got := h.owners(1); got["n1"] != "u0" || got["n2"] != "typed" {
		t.Errorf("the partner's events went to %v", got)
	}
}

func TestAPartnerIDMovesToTheUserWhosePropertyHoldsIt(t *testing.T) {
	for _, projectID := range []int64{1, 2, 3} {
		h := newHarness(t)
		n := 0
		arrives := func(id, want string) {
			t.Helper()
			n++
			key := fmt.Sprint("n", n)
			h.importStrict(projectID, ev("Notification Sent", start, id, key, props{"$source": "clevertap"}))
			if got := h.owners(projectID)[key]; got != want {
				t.Errorf("project %d: an event of %s went to %s, want %s", projectID, id, got, want)
			}
		}
		unset := func(id string) props { return props{"$distinct_id": id, "$unset": []string{clevertap}} }
		ct := func(id, v string) props { return set(id, props{clevertap: v, "name": id}) }

		arrives("IDA", "IDA")
		h.engage(projectID, ct("v1", "IDA"), ct("v3", "IDC"))
		arrives("IDA", "v1")
		h.engage(projectID, ct("v1", "IDB"))
		arrives("IDA", "v1") // until somebody takes it
		mark := h.evaluate(projectID).mark.GetProfileSeq()
		h.engage(projectID, ct("v2", "IDA"))
		h.wantPartners(projectID, map[string]string{"v1": "IDB", "v2": "IDA"})
		arrives("IDA", "v2")
		if got := h.owners(projectID); got["n1"] != "v1" || got["n2"] != "v1" || got["n3"] != "v1" {
			t.Errorf("project %d: earlier events moved: %v", projectID, got)
		}
		r, err := h.eval.ListChangedUsers(context.Background(), &ingestionv1.ListChangedUsersRequest{Parent: fmt.Sprintf("projects/%d", projectID), SinceSeq: mark, UntilSeq: h.evaluate(projectID).mark.GetProfileSeq()})
		if err != nil || r.GetUsers().GetCount() < 2 {
			t.Errorf("project %d: changed %v, %v", projectID, r, err)
		}

		h.engage(projectID, ct("v1", "IDA"), ct("v2", "IDB")) // a swap in one batch
		h.wantPartners(projectID, map[string]string{"v1": "IDA", "v2": "IDB"})
		arrives("IDA", "v1")
		arrives("IDB", "v2")
		h.engage(projectID, ct("v1", "IDB")) // and in two
		h.wantPartners(projectID, map[string]string{"v1": "!conflict", "v2": "IDB"})
		h.engage(projectID, ct("v2", "IDA"))
		h.wantPartners(projectID, map[string]string{"v1": "IDB", "v2": "IDA"})

		// The first who waits gets it when its holder unsets it or goes.
		h.engage(projectID, ct("w1", "IDC"), ct("w2", "IDC"), unset("v3"))
		h.wantPartners(projectID, map[string]string{"w1": "IDC", "w2": "!conflict", "v3": "-"})
		h.restart()
		h.engage(projectID, props{"$distinct_id": "w1", "$delete": ""})
		h.wantPartners(projectID, map[string]string{"w2": "IDC"})
		arrives("IDC", "w2")
		if w := h.warnings(projectID); w != "PARTNER_ALIAS_CONFLICT×4" {
			t.Errorf("project %d: warnings %q", projectID, w)
		}
	}
}

func TestMergesKeepPartnerIDsApart(t *testing.T) {
	h := newHarness(t)
	merge := func(n, a, b string) {
		h.importStrict(2, ev("$merge", start, "", n, props{"$distinct_ids": []string{a, b}}))
	}
	h.engage(2, set("holder", props{clevertap: "IDA"}), set("waits", props{clevertap: "IDA"}), set("plain", props{"n": 1}))
	merge("m1", "plain", "waits") // plain waits now
	h.wantPartners(2, map[string]string{"holder": "IDA", "plain": "!conflict"})
	h.engage(2, set("other", props{clevertap: "IDB"}))
	merge("m2", "other", "holder") // nobody holds IDA any more but plain
	h.wantPartners(2, map[string]string{"other": "IDB", "plain": "IDA"})
}

func TestNoTwoUsersAreEverDeliveredUnderOneID(t *testing.T) {
	for seed := range uint64(6) {
		h := newHarness(t)
		projectID := int64(seed%3) + 1
		r := rand.New(rand.NewPCG(seed, 1))
		ids := []string{"u0", "u1", "u2", "u3", "u4", "u5", "A", "B", "C"}
		pick := func() string { return ids[r.IntN(len(ids))] }
		holds := map[string]string{}
		for step := range 60 {
			var batch []props
			for range 1 + r.IntN(3) {
				who := ids[r.IntN(6)]
				switch r.IntN(8) {
				case 0:
					batch = append(batch, props{"$distinct_id": who, "$delete": ""})
					delete(holds, who)
				case 1:
					batch = append(batch, props{"$distinct_id": who, "$unset": []string{clevertap}})
					delete(holds, who)
				case 2: // a swap
					if a, b := holds["u1"], holds["u2"]; a != "" && b != "" {
						batch = append(batch, set("u1", props{clevertap: b}), set("u2", props{clevertap: a}))
						holds["u1"], holds["u2"] = b, a
					}
				default:
					v := pick()
					batch = append(batch, set(who, props{clevertap: v, "n": step}))
					holds[who] = v
				}
			}
			if len(batch) > 0 {
				h.engage(projectID, batch...)
			}
			if projectID == 3 && r.IntN(6) == 0 { // the id of one user becomes another's
				h.importStrict(projectID, ev("$create_alias", start, ids[r.IntN(6)], fmt.Sprint("c", step), props{"alias": ids[r.IntN(6)]}))
			}
			if r.IntN(3) == 0 {
				h.importStrict(projectID, ev("View", start, pick(), fmt.Sprint("e", step), nil))
			}
			got := h.partners(projectID)
			// Of those who hold A, B or C, which are no users of their own, one has it.
			for _, m := range h.members(projectID, h.evaluate(projectID).identified, clevertap) {
				v := strings.Trim(string(m.GetColumns()[0]), `"`)
				if v >= "A" && v <= "C" && !slices.Contains(slices.Collect(maps.Values(got)), v) {
					t.Errorf("%s holds %s, under which nobody is delivered: %v", m.GetDistinctId(), v, got)
				}
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d: %v", seed, step, batch)
			}
		}
	}
}
