package e2e

import (
	"fmt"
	"net"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/mixpanel/mixpanel-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// goClient is the official client, unchanged but for its host.
func goClient(t *testing.T, c *harness.Client) *mixpanel.ApiClient {
	t.Helper()
	id, err := strconv.Atoi(c.Creds.ProjectID)
	if err != nil {
		t.Fatal(err)
	}
	return mixpanel.NewApiClient(c.Creds.ProjectToken, mixpanel.ProxyApiLocation(c.Base), mixpanel.ProxyDataLocation(c.Base), mixpanel.ServiceAccount(id, c.Creds.ServiceAccount, c.Creds.ServiceSecret))
}

func TestMixpanelGoTracksAndImportsAndReadsItBack(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	mp := goClient(t, c)
	ctx := t.Context()
	tracked := mp.NewEvent("Tracked", "go-user", map[string]any{"plan": "pro"})
	tracked.AddIP(net.ParseIP("203.0.113.9"))
	if err := mp.Track(ctx, []*mixpanel.Event{tracked}); err != nil {
		t.Fatalf("Track: %v", err)
	}
	var batch []*mixpanel.Event
	for i := range 3 {
		e := mp.NewEvent(fmt.Sprintf("Imported %d", i), "go-user", map[string]any{"i": i})
		e.AddTime(time.Now().Add(-72 * time.Hour))
		e.AddInsertID(fmt.Sprintf("go-%d", i))
		batch = append(batch, e)
	}
	for _, o := range []mixpanel.ImportOptions{mixpanel.ImportOptionsRecommend, {Strict: true, Compression: mixpanel.None}} {
		res, err := mp.Import(ctx, batch, o) // the second time they are duplicates
		if err != nil || res.NumRecordsImported != 3 {
			t.Fatalf("Import: %+v, %v", res, err)
		}
	}
	got := c.Export(t)
	if want := []string{"Imported 0", "Imported 1", "Imported 2", "Tracked"}; !reflect.DeepEqual(harness.Names(got), want) {
		t.Fatalf("exported %v, want %v", harness.Names(got), want)
	}
	if got[0].Properties["distinct_id"] != "go-user" || got[0].Properties["$insert_id"] != "go-0" || got[3].Properties["plan"] != "pro" {
		t.Fatalf("exported %v", got)
	}
	if _, stored := got[3].Properties["ip"]; stored {
		t.Error("the ip property was stored")
	}
	own, err := mp.Export(ctx, time.Now().Add(-96*time.Hour), time.Now(), mixpanel.ExportNoLimit, mixpanel.ExportNoEventFilter, mixpanel.ExportNoWhereFilter)
	if err != nil || len(own) != 4 {
		t.Fatalf("the client's own export: %d events, %v", len(own), err)
	}
}

func TestMixpanelGoImportReportsInvalidEventsByIndex(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	mp := goClient(t, c)
	good, bad := mp.NewEvent("Good", "u", map[string]any{}), mp.NewEvent("Bad", "u", map[string]any{})
	good.AddTime(time.Now())
	good.AddInsertID("good-1")
	bad.AddTime(time.Date(1970, 6, 1, 0, 0, 0, 0, time.UTC))
	bad.AddInsertID("bad-1")
	_, err := mp.Import(t.Context(), []*mixpanel.Event{good, bad}, mixpanel.ImportOptionsRecommend)
	failed, ok := err.(mixpanel.ImportFailedValidationError) //nolint:errorlint // as the client's documentation does
	if !ok {
		t.Fatalf("err = %v (%T), want ImportFailedValidationError", err, err)
	}
	if failed.NumRecordsImported != 1 || len(failed.FailedImportRecords) != 1 || failed.FailedImportRecords[0].Index != 1 || failed.FailedImportRecords[0].InsertID != "bad-1" || failed.FailedImportRecords[0].Field != "properties.time" {
		t.Fatalf("failed = %+v", failed)
	}
	if got := harness.Names(c.Export(t)); !reflect.DeepEqual(got, []string{"Good"}) {
		t.Fatalf("stored %v, want Good", got)
	}
}

func TestMixpanelGoWritesProfiles(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	mp := goClient(t, c)
	ctx := t.Context()
	step := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	step("set", mp.PeopleSet(ctx, []*mixpanel.PeopleProperties{mixpanel.NewPeopleProperties("go-user", map[string]any{"name": "Ada", "visits": 1, "tags": []string{"a"}, "gone": true})}))
	step("set once", mp.PeopleSetOnce(ctx, []*mixpanel.PeopleProperties{mixpanel.NewPeopleProperties("go-user", map[string]any{"name": "Eve", "first": "yes"})}))
	step("increment", mp.PeopleIncrement(ctx, "go-user", map[string]int{"visits": 4, "fresh": 2}))
	step("union", mp.PeopleUnionProperty(ctx, "go-user", map[string]any{"tags": []string{"a", "b"}}))
	step("append", mp.PeopleAppendListProperty(ctx, "go-user", map[string]any{"tags": "b"}))
	step("unset", mp.PeopleDeleteProperty(ctx, "go-user", []string{"gone"}))
	got := c.Profile(t, "go-user")
	want := map[string]any{"name": "Ada", "first": "yes", "visits": 5.0, "fresh": 2.0, "tags": []any{"a", "b", "b"}}
	for k, v := range want {
		if !reflect.DeepEqual(got[k], v) {
			t.Errorf("%s = %v, want %v", k, got[k], v)
		}
	}
	if _, there := got["gone"]; there {
		t.Error("an unset property is still there")
	}
	step("remove", mp.PeopleRemoveListProperty(ctx, "go-user", map[string]any{"tags": "b"}))
	if tags := c.Profile(t, "go-user")["tags"]; !reflect.DeepEqual(tags, []any{"a"}) {
		t.Errorf("tags after remove = %v, want [a]", tags)
	}
	step("delete", mp.PeopleDeleteProfile(ctx, "go-user", true))
	if _, err := c.Data().GetProfile(ctx, &ingestionv1.GetProfileRequest{Parent: c.Project, DistinctId: "go-user"}); status.Code(err) != codes.NotFound {
		t.Errorf("profile after delete: %v, want NotFound", err)
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
