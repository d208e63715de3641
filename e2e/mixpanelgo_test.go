package e2e

import (
	"fmt"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mixpanel/mixpanel-go"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
)

// goClient is the official client, unchanged but for its host, as a service account.
func goClient(t *testing.T, c *harness.Client) *mixpanel.ApiClient {
	t.Helper()
	id, err := strconv.Atoi(c.Creds.ProjectID)
	if err != nil {
		t.Fatal(err)
	}
	return goClientAs(c, mixpanel.ServiceAccount(id, c.Creds.ServiceAccount, c.Creds.ServiceSecret))
}

// goClientAs is the client with other credentials; without any it uses the token.
func goClientAs(c *harness.Client, options ...mixpanel.Options) *mixpanel.ApiClient {
	return mixpanel.NewApiClient(c.Creds.ProjectToken, append(options, mixpanel.ProxyApiLocation(c.Base), mixpanel.ProxyDataLocation(c.Base))...)
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

func TestMixpanelGoImportsWithEachCredential(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	var want []string
	for _, cred := range []struct {
		name string
		mp   *mixpanel.ApiClient
	}{
		{"service account", goClient(t, c)},
		{"project secret", goClientAs(c, mixpanel.ApiSecret(c.Creds.ProjectSecret))},
		{"project token", goClientAs(c)},
	} {
		for _, compression := range []mixpanel.MpCompression{mixpanel.None, mixpanel.Gzip} {
			for _, strict := range []bool{true, false} {
				name := fmt.Sprintf("%s, gzip %d, strict %t", cred.name, compression, strict)
				e, err := cred.mp.NewEventFromJson(map[string]any{"event": name, "properties": map[string]any{"distinct_id": "go-user", "text": texts}})
				if err != nil {
					t.Fatal(err)
				}
				e.AddTime(time.Now().Add(-24 * time.Hour))
				e.AddInsertID("go-1")
				res, err := cred.mp.Import(t.Context(), []*mixpanel.Event{e}, mixpanel.ImportOptions{Strict: strict, Compression: compression})
				if err != nil || res.NumRecordsImported != 1 || res.Code != 200 {
					t.Fatalf("%s: %+v, %v", name, res, err)
				}
				want = append(want, name)
			}
		}
	}
	got := c.Export(t)
	slices.Sort(want)
	if !slices.Equal(harness.Names(got), want) {
		t.Fatalf("stored %v, want %v", harness.Names(got), want)
	}
	for _, e := range got {
		if e.Properties["text"] != texts || e.Properties["distinct_id"] != "go-user" {
			t.Errorf("%s: stored %v", e.Event, e.Properties)
		}
	}
}

// texts is hard to carry: separators of forms, quotes, a joined emoji, no ASCII.
const texts = `a+b&c=d%20 "q" \ ÿ>?~ नमस्ते 👩‍👩‍👧‍👦🎉`

func TestMixpanelGoIsRefusedPreciselyWithAWrongCredential(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	for name, mp := range map[string]*mixpanel.ApiClient{
		"service account": goClientAs(c, mixpanel.ServiceAccount(1, "nobody.1.mp-service-account", "wrong")),
		"project secret":  goClientAs(c, mixpanel.ApiSecret("wrong")),
	} {
		e := mp.NewEvent("E", "u", map[string]any{})
		e.AddTime(time.Now())
		e.AddInsertID("i")
		_, err := mp.Import(t.Context(), []*mixpanel.Event{e}, mixpanel.ImportOptionsRecommend)
		if refused, ok := err.(mixpanel.ImportGenericError); !ok || refused.Code != 401 { //nolint:errorlint // as the client's documentation does
			t.Errorf("%s: %v (%T), want ImportGenericError with code 401", name, err, err)
		}
		if err := mp.Merge(t.Context(), "a", "b"); err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("%s: Merge: %v", name, err)
		}
		if _, err := mp.Export(t.Context(), time.Now(), time.Now(), mixpanel.ExportNoLimit, "", ""); err == nil || !strings.Contains(err.Error(), "40") {
			t.Errorf("%s: Export: %v", name, err)
		}
	}
	stranger := mixpanel.NewApiClient("no-such-token", mixpanel.ProxyApiLocation(c.Base))
	if err := stranger.Track(t.Context(), []*mixpanel.Event{stranger.NewEvent("E", "u", nil)}); err == nil {
		t.Error("Track with an unknown token succeeded")
	}
	if err := stranger.PeopleSet(t.Context(), []*mixpanel.PeopleProperties{mixpanel.NewPeopleProperties("u", map[string]any{"a": 1})}); err == nil {
		t.Error("PeopleSet with an unknown token succeeded")
	}
	if got := c.Export(t); len(got) != 0 {
		t.Errorf("stored %v", got)
	}
}

func TestMixpanelGoExportsWithEveryFilterAndCredential(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	mp := goClient(t, c)
	if err := mp.Track(t.Context(), []*mixpanel.Event{mp.NewEvent("A", "u", map[string]any{"text": texts}), mp.NewEvent("A", "v", nil), mp.NewEvent("B", "u", nil)}); err != nil {
		t.Fatal(err)
	}
	from, to := time.Now().Add(-24*time.Hour), time.Now().Add(24*time.Hour)
	for _, q := range []struct {
		name  string
		limit int
		event string
		want  int
	}{
		{"all", mixpanel.ExportNoLimit, mixpanel.ExportNoEventFilter, 3},
		{"one name", mixpanel.ExportNoLimit, `["A"]`, 2},
		{"two names", mixpanel.ExportNoLimit, `["A","B"]`, 3},
		{"a name nobody sent", mixpanel.ExportNoLimit, `["C"]`, 0},
		{"a limit", 1, mixpanel.ExportNoEventFilter, 1},
	} {
		got, err := mp.Export(t.Context(), from, to, q.limit, q.event, mixpanel.ExportNoWhereFilter)
		if err != nil || len(got) != q.want {
			t.Errorf("%s: %d events, %v; want %d", q.name, len(got), err, q.want)
		}
	}
	if got, err := mp.Export(t.Context(), from, to, mixpanel.ExportNoLimit, "", `properties["distinct_id"] == "v"`); err != nil || len(got) != 1 || got[0].Properties["distinct_id"] != "v" {
		t.Errorf("where: %v, %v", got, err)
	}
	if got, err := goClientAs(c, mixpanel.ApiSecret(c.Creds.ProjectSecret)).Export(t.Context(), from, to, mixpanel.ExportNoLimit, "", ""); err != nil || len(got) != 3 {
		t.Errorf("with the project secret: %d events, %v", len(got), err)
	}
}
