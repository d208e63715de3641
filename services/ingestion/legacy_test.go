package ingestion_test

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// found is what the three lookups of a LEGACY project show of an id: the canonical
// id of its identity, the canonical id and events of its month, its profile's "n".
func (h *harness) found(id string, literal bool) string {
	h.t.Helper()
	ctx := context.Background()
	who, err := h.who.LookupIdentity(ctx, &ingestionv1.LookupIdentityRequest{Parent: "projects/3", DistinctId: id, IgnoreAlias: literal})
	if err != nil {
		h.t.Fatal(err)
	}
	out := who.GetCanonicalId()
	for _, i := range who.GetIds() {
		out += fmt.Sprintf(" %s(%v)", i.GetId(), i.GetFormerUserNo() != 0)
	}
	why, err := h.use.ExplainUser(ctx, &ingestionv1.ExplainUserRequest{Parent: "projects/3", DistinctId: id, IgnoreAlias: literal})
	if err != nil {
		h.t.Fatal(err)
	}
	out += fmt.Sprintf("; %s %d; ", why.GetCanonicalId(), why.GetQualifyingEvents())
	p, err := h.data.GetProfile(ctx, &ingestionv1.GetProfileRequest{Parent: "projects/3", DistinctId: id, IgnoreAlias: literal})
	if status.Code(err) == codes.OK {
		return out + fmt.Sprint(p.GetProfile().GetProperties().AsMap()["n"])
	}
	return out + "-"
}

func TestLegacyUsersWhoseIDBecameAnAliasAreFoundByItAllTheSame(t *testing.T) {
	h := newHarness(t)
	h.importStrict(3, ev("View", start, "first", "f1", nil), ev("View", start, "user", "f2", nil), ev("View", start, "user", "f3", nil))
	h.engage(3, set("user", props{"n": 1}))
	h.importStrict(3, ev("$create_alias", start, "first", "f4", props{"alias": "user"}), ev("$create_alias", start, "first", "f5", props{"alias": "new"}))
	h.importStrict(3, ev("View", start, "user", "f6", nil)) // first's from now on
	h.engage(3, set("user", props{"n": 2}))
	want := func(id string, literal bool, want string) {
		t.Helper()
		if got := h.found(id, literal); got != want {
			t.Errorf("%s, literally %v: %q, want %q", id, literal, got, want)
		}
	}
	for range 2 {
		const first = "first first(false) new(false) user(true); first 2; 2"
		want("user", false, first)
		want("first", false, first)
		want("user", true, "user; user 2; 1")
		want("first", true, first)
		want("new", true, first) // nobody had it before
		h.restart()
	}
	if u := h.month(3, ""); u.GetMtu() != 2 {
		t.Errorf("users %v", u)
	}
	// The wire's modifier reaches the former user as well, and spares the other.
	for _, u := range []props{set("user", props{"n": 3}), {"$distinct_id": "user", "$delete": ""}} {
		u["$ignore_alias"] = true
		h.engage(3, u)
		want("first", false, "first first(false) new(false) user(true); first 2; 2")
		if u["$delete"] == nil {
			want("user", true, "user; user 2; 3")
		} else {
			want("user", true, "user; user 2; -")
		}
	}
}

func TestLegacyUsersWhoseIDBecameAnAliasAreNotDeliveredUnderIt(t *testing.T) {
	h := newHarness(t)
	h.engage(3, set("user", props{"n": 1}), set("first", props{"n": 1}))
	h.wantPartners(3, map[string]string{"user": "-", "first": "-"})
	h.importStrict(3, ev("$create_alias", start, "first", "a1", props{"alias": "user"}))
	h.engage(3, set("first", props{clevertap: "user"}))
	h.wantPartners(3, map[string]string{"user": "!conflict", "first": "user"})
	// With a partner id of its own it is delivered under that.
	h.engage(3, props{"$distinct_id": "user", "$ignore_alias": true, "$set": props{clevertap: "own"}})
	h.wantPartners(3, map[string]string{"user": "own", "first": "user"})
}
