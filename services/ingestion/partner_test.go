package ingestion_test

import (
	"context"
	"fmt"
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
