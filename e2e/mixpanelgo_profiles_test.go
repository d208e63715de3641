package e2e

import (
	"net"
	"testing"
	"time"

	"github.com/mixpanel/mixpanel-go"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// stepper fails the test at the first call of a client that fails.
func stepper(t *testing.T) func(what string, err error) {
	return func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func TestMixpanelGoWritesProfiles(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	mp := goClient(t, c)
	ctx := t.Context()
	step := stepper(t)
	step("set", mp.PeopleSet(ctx, []*mixpanel.PeopleProperties{
		mixpanel.NewPeopleProperties("go-user", map[string]any{"name": texts, "visits": 1, "tags": []string{"a"}, "gone": true}),
		mixpanel.NewPeopleProperties("go-other", map[string]any{"name": "Bob"}),
	}))
	step("set once", mp.PeopleSetOnce(ctx, []*mixpanel.PeopleProperties{mixpanel.NewPeopleProperties("go-user", map[string]any{"name": "Eve", "first": "yes"})}))
	step("increment", mp.PeopleIncrement(ctx, "go-user", map[string]int{"visits": 4, "fresh": 2}))
	step("union", mp.PeopleUnionProperty(ctx, "go-user", map[string]any{"tags": []string{"a", "b"}}))
	step("append", mp.PeopleAppendListProperty(ctx, "go-user", map[string]any{"tags": "b"}))
	step("unset", mp.PeopleDeleteProperty(ctx, "go-user", []string{"gone"}))
	want := map[string]any{"name": texts, "first": "yes", "visits": 5.0, "fresh": 2.0, "tags": []any{"a", "b", "b"}}
	harness.SameProperties(t, "go-user", c.Profile(t, "go-user"), want)
	step("remove", mp.PeopleRemoveListProperty(ctx, "go-user", map[string]any{"tags": "b"}))
	want["tags"] = []any{"a"}
	harness.SameProperties(t, "go-user after remove", c.Profile(t, "go-user"), want)
	step("delete", mp.PeopleDeleteProfile(ctx, "go-user", true))
	c.NoProfile(t, "go-user")
	harness.SameProperties(t, "go-other", c.Profile(t, "go-other"), map[string]any{"name": "Bob"})
}

func TestMixpanelGoSetsReservedPropertiesAndLeavesNoAddress(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	mp := goClient(t, c)
	p := mixpanel.NewPeopleProperties("go-user", nil)
	p.SetReservedProperty(mixpanel.PeopleFirstNameProperty, "Ada")
	p.SetReservedProperty(mixpanel.PeopleCityProperty, "Pune")
	p.SetIp(net.ParseIP("203.0.113.9"))
	own := mixpanel.NewPeopleProperties("go-other", map[string]any{"a": 1})
	own.SetIp(nil, mixpanel.UseRequestIp())
	step := stepper(t)
	step("set", mp.PeopleSet(t.Context(), []*mixpanel.PeopleProperties{p, own}))
	step("set once", mp.PeopleSetOnce(t.Context(), []*mixpanel.PeopleProperties{p, own}))
	harness.SameProperties(t, "go-user", c.Profile(t, "go-user"), map[string]any{"$first_name": "Ada", "$city": "Pune"})
	harness.SameProperties(t, "go-other", c.Profile(t, "go-other"), map[string]any{"a": 1.0})
}

func TestMixpanelGoWritesGroups(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	mp := goClient(t, c)
	ctx := t.Context()
	step := stepper(t)
	step("set", mp.GroupSet(ctx, "company", "acme", map[string]any{"name": texts, "seats": 5, "tags": []string{"a"}, "gone": true}))
	step("set other", mp.GroupSet(ctx, "company", "other", map[string]any{"name": "Other"}))
	step("set once", mp.GroupSetOnce(ctx, "company", "acme", map[string]any{"name": "Eve", "first": "yes"}))
	step("union", mp.GroupUnionListProperty(ctx, "company", "acme", map[string]any{"tags": []string{"a", "b"}}))
	step("unset", mp.GroupDeleteProperty(ctx, "company", "acme", []string{"gone"}))
	want := map[string]any{"name": texts, "seats": 5.0, "first": "yes", "tags": []any{"a", "b"}}
	harness.SameProperties(t, "acme", c.Group(t, "company", "acme"), want)
	step("remove", mp.GroupRemoveListProperty(ctx, "company", "acme", map[string]any{"tags": "a"}))
	want["tags"] = []any{"b"}
	harness.SameProperties(t, "acme after remove", c.Group(t, "company", "acme"), want)
	c.NoProfile(t, "acme") // a group is no user
	step("delete", mp.GroupDelete(ctx, "company", "acme"))
	c.NoGroup(t, "company", "acme")
	harness.SameProperties(t, "other", c.Group(t, "company", "other"), map[string]any{"name": "Other"})
}

func TestMixpanelGoMergeJoinsTwoUsersInAnOriginalProject(t *testing.T) {
	dir := t.TempDir()
	c := harness.Standalone(t, dir).NewProject(t, dir, typev1.IdentitySystem_IDENTITY_SYSTEM_ORIGINAL)
	mp := goClientAs(c, mixpanel.ApiSecret(c.Creds.ProjectSecret)) // what Merge needs
	step := stepper(t)
	step("track", mp.Track(t.Context(), []*mixpanel.Event{mp.NewEvent("E", "known-1", nil), mp.NewEvent("E", "known-2", nil)}))
	step("merge", mp.Merge(t.Context(), "known-1", "known-2"))
	ids := harness.IDs(c.Export(t, "E"))
	if len(ids) != 2 || ids[0] != ids[1] {
		t.Fatalf("after the merge the events have the ids %v, want one", ids)
	}
	step("set", mp.PeopleSet(t.Context(), []*mixpanel.PeopleProperties{mixpanel.NewPeopleProperties("known-2", map[string]any{"since": time.Now().Year()})}))
	if one, two := c.Profile(t, "known-1")["since"], c.Profile(t, "known-2")["since"]; one == nil || one != two {
		t.Errorf("the profile by each id has %v and %v", one, two)
	}
}

func TestMixpanelGoAliasJoinsTwoIdsInAnOriginalProject(t *testing.T) {
	dir := t.TempDir()
	p := harness.Standalone(t, dir)
	c := p.NewProject(t, dir, typev1.IdentitySystem_IDENTITY_SYSTEM_ORIGINAL)
	mp := goClient(t, c)
	ctx := t.Context()
	before := mp.NewEvent("Before", "anonymous-1", map[string]any{})
	after := mp.NewEvent("After", "known-1", map[string]any{})
	if err := mp.Track(ctx, []*mixpanel.Event{before}); err != nil {
		t.Fatal(err)
	}
	if err := mp.Alias(ctx, "known-1", "anonymous-1"); err != nil {
		t.Fatalf("Alias: %v", err)
	}
	if err := mp.Track(ctx, []*mixpanel.Event{after}); err != nil {
		t.Fatal(err)
	}
	if err := mp.PeopleSet(ctx, []*mixpanel.PeopleProperties{mixpanel.NewPeopleProperties("known-1", map[string]any{"name": "Ada"})}); err != nil {
		t.Fatal(err)
	}
	ids := map[any]bool{}
	for _, e := range c.Export(t) {
		if e.Event == "Before" || e.Event == "After" {
			ids[e.Properties["distinct_id"]] = true
		}
	}
	if len(ids) != 1 {
		t.Fatalf("events before and after the alias have the ids %v, want one", ids)
	}
	if got := c.Profile(t, "anonymous-1")["name"]; got != "Ada" {
		t.Fatalf("the profile by the other id has name %v", got)
	}
	u, err := c.Usage().GetUsage(ctx, &ingestionv1.GetUsageRequest{Parent: c.Project})
	if err != nil || u.GetMtu() != 1 {
		t.Fatalf("MTU = %d, %v; want 1", u.GetMtu(), err)
	}
}
