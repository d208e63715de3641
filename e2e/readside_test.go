package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mixpanel/mixpanel-go"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// utils sends what mixpanel-utils sends (mixpanel/mixpanel-utils, __init__.py and
// paginator.py): GET with all parameters in the query, lists as JSON, and Basic in
// base64; project_id only with a service account.
type utils struct {
	t            *testing.T
	base         string
	user, secret string
	projectID    string // empty with a project secret
}

func utilsOf(t *testing.T, c *harness.Client) *utils {
	return &utils{t, c.Base, c.Creds.ServiceAccount, c.Creds.ServiceSecret, c.Creds.ProjectID}
}

func (u *utils) get(path string, params url.Values, gzipped bool) (int, http.Header, []byte) {
	u.t.Helper()
	q := url.Values{}
	for k, v := range params {
		q[k] = v
	}
	if u.projectID != "" {
		q.Set("project_id", u.projectID)
	}
	req, err := http.NewRequestWithContext(u.t.Context(), http.MethodGet, u.base+"/api/2.0/"+path+"?"+q.Encode(), nil)
	if err != nil {
		u.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.user+":"+u.secret)))
	req.Header.Set("Accept-Encoding", "identity")
	if gzipped {
		req.Header.Set("Accept-Encoding", "gzip")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		u.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		u.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, body
}

// person is one result of the engage query.
type person struct {
	ID         string         `json:"$distinct_id"`
	Properties map[string]any `json:"$properties"`
}

type engagePage struct {
	Status, SessionID, ComputedAt string
	Page, PageSize, Total         int
	Results                       []person
}

func decodePage(t *testing.T, status int, body []byte) engagePage {
	t.Helper()
	var p struct {
		Status     string   `json:"status"`
		SessionID  string   `json:"session_id"`
		ComputedAt string   `json:"computed_at"`
		Page       int      `json:"page"`
		PageSize   int      `json:"page_size"`
		Total      int      `json:"total"`
		Results    []person `json:"results"`
	}
	if err := json.Unmarshal(body, &p); status != 200 || err != nil || p.Status != "ok" || p.SessionID == "" || p.ComputedAt == "" || p.Results == nil {
		t.Fatalf("HTTP %d, %v: %.300s", status, err, body)
	}
	return engagePage{p.Status, p.SessionID, p.ComputedAt, p.Page, p.PageSize, p.Total, p.Results}
}

// queryEngage reads the first page, works the number of pages out from total and
// page_size, and reads the others two at a time, as query_engage does.
func (u *utils) queryEngage(params url.Values) []person {
	u.t.Helper()
	status, _, body := u.get("engage", params, false)
	first := decodePage(u.t, status, body)
	pages := make([][]person, int(math.Ceil(float64(first.Total)/float64(first.PageSize))))
	if len(pages) == 0 {
		return first.Results
	}
	pages[first.Page] = first.Results
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2)
	for n := first.Page + 1; n < len(pages); n++ {
		q := url.Values{"session_id": {first.SessionID}, "page": {strconv.Itoa(n)}}
		for k, v := range params {
			q[k] = v
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			status, _, body := u.get("engage", q, false)
			pages[n] = decodePage(u.t, status, body).Results
		})
	}
	wg.Wait()
	return slices.Concat(pages...)
}

func ids(list []person) []string {
	out := []string{}
	for _, p := range list {
		out = append(out, p.ID)
	}
	return out
}

func TestMixpanelUtilsReadsAllProfilesInPages(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	const n = 2500
	c.People(t, "p", 0, n, "plan", "pro")
	c.People(t, "q", 0, 3, "plan", "free")
	u := utilsOf(t, c)
	all := u.queryEngage(nil)
	if len(all) != n+3 || !slices.IsSorted(ids(all)) || len(slices.Compact(ids(all))) != n+3 {
		t.Fatalf("%d profiles, sorted: %v", len(all), slices.IsSorted(ids(all)))
	}
	if p := all[0]; p.ID != "p-0" || p.Properties["$email"] != "p-0@example.org" || p.Properties["plan"] != "pro" || p.Properties["$last_seen"] == nil {
		t.Errorf("the first one is %v", p)
	}
	if got := u.queryEngage(url.Values{"where": {`(properties["plan"] == "free")`}, "output_properties": {`["$email"]`}}); len(got) != 3 || len(got[0].Properties) != 1 || got[2].Properties["$email"] != "q-2@example.org" {
		t.Errorf("by expression: %v", got)
	}
	// people_change_property_name selects by the older name of where.
	if got := u.queryEngage(url.Values{"selector": {`(defined (properties["gone"]))`}}); len(got) != 0 {
		t.Errorf("by selector: %d profiles", len(got))
	}
	if got := u.queryEngage(url.Values{"where": {`(boolean(properties["$email"]) == true)`}}); len(got) != n+3 {
		t.Errorf("deduplicate_people reads %d profiles", len(got))
	}
	if got := u.queryEngage(url.Values{"distinct_ids": {`["q-1","nobody","p-7"]`}}); !reflect.DeepEqual(ids(got), []string{"p-7", "q-1"}) {
		t.Errorf("by ids: %v", ids(got))
	}
	// With a project secret the project needs no naming.
	secret := &utils{t: t, base: c.Base, user: c.Creds.ProjectSecret}
	if got := secret.queryEngage(nil); !reflect.DeepEqual(got, all) {
		t.Errorf("with the project secret: %d profiles", len(got))
	}
	if status, _, body := (&utils{t: t, base: c.Base, user: c.Creds.ProjectToken}).get("engage", nil, false); status != 401 {
		t.Errorf("the token reads: %d %.200s", status, body)
	}
}

func TestMixpanelUtilsExportsEventsAsItAsksForThem(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	c.People(t, "payer", 0, 1, "plan", "pro")
	mp := goClient(t, c)
	var batch []*mixpanel.Event
	day := time.Date(2026, 11, 1, 23, 59, 59, 0, time.UTC)
	for i := range 40 {
		e := mp.NewEvent("Buy", fmt.Sprintf("payer-%d", i%2), map[string]any{"amount": i})
		e.AddTime(day.Add(time.Duration(i) * time.Minute)) // one on the first day, the others on the second
		e.AddInsertID(fmt.Sprint("b", i))
		batch = append(batch, e)
	}
	if _, err := mp.Import(t.Context(), batch, mixpanel.ImportOptionsRecommend); err != nil {
		t.Fatal(err)
	}
	u := utilsOf(t, c)
	export := func(gzipped bool, kv ...string) (out []harness.Exported) {
		t.Helper()
		params := url.Values{"from_date": {"2026-11-01"}, "to_date": {"2026-11-02"}}
		for i := 0; i < len(kv); i += 2 {
			params.Set(kv[i], kv[i+1])
		}
		status, head, body := u.get("export", params, gzipped)
		if status != 200 || gzipped != (head.Get("Content-Encoding") == "gzip") {
			t.Fatalf("%v: HTTP %d %v %.300s", kv, status, head, body)
		}
		if gzipped {
			z, err := gzip.NewReader(bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if body, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		for line := range bytes.Lines(body) {
			var e harness.Exported
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatal(err)
			}
			out = append(out, e)
		}
		return out
	}
	for _, gzipped := range []bool{false, true} {
		if got := export(gzipped); len(got) != 40 {
			t.Errorf("gzip %v: %d events", gzipped, len(got))
		}
	}
	if got := export(false, "to_date", "2026-11-01"); len(got) != 1 || got[0].Properties["time"] != float64(day.Unix()) || got[0].Properties["$insert_id"] != "b0" {
		t.Errorf("the first day: %v", got)
	}
	for where, want := range map[string]int{
		`properties["amount"] >= 30`: 10,
		`user["plan"] == "pro"`:      20,
		`event["$time"] >= datetime("2026-11-02T00:10:00") and user["$email"] != "x"`:      29,
		`not (properties["amount"] in [1, 2, 3]) and "payer" in properties["distinct_id"]`: 37,
	} {
		if got := export(false, "where", where); len(got) != want {
			t.Errorf("%s: %d events, want %d", where, len(got), want)
		}
	}
	if got := export(false, "event", `["View","Other"]`); len(got) != 0 {
		t.Errorf("other names: %d events", len(got))
	}
	if got := export(false, "limit", "7", "event", `["Buy"]`, "time_in_ms", "true"); len(got) != 7 || got[0].Properties["time"].(float64) < 1e12 {
		t.Errorf("limited: %v", got)
	}
	own, err := mp.Export(t.Context(), day, day.Add(time.Hour), 5, `["Buy"]`, `properties["amount"] > 20`)
	if err != nil || len(own) != 5 {
		t.Errorf("the Go client exports %d events, %v", len(own), err)
	}
	for params, say := range map[string]string{
		"to_date=2026-11-01": "from_date: is required", "from_date=2026-11-31&to_date=2026-12-01": "from_date: must be a day that exists", "from_date=2026-11-02&to_date=2026-11-01": "to_date: must not be before",
		"from_date=2026-11-01&to_date=2026-11-02&where=" + url.QueryEscape(`user["a"] == someone@example.org`): "where: at character 14",
	} {
		q, _ := url.ParseQuery(params)
		status, _, body := u.get("export", q, false)
		var e struct{ Error, Status string }
		if err := json.Unmarshal(body, &e); status != 400 || err != nil || e.Status != "error" || !strings.Contains(e.Error, say) || strings.Contains(e.Error, "someone") {
			t.Errorf("%s: HTTP %d %s, want %q", params, status, body, say)
		}
	}
}

func TestACohortIsReadAsTheStreamingExporterReadsIt(t *testing.T) {
	c := harness.Standalone(t, t.TempDir()).Client(t)
	c.People(t, "in", 0, 12, "segment", "yes")
	c.People(t, "out", 0, 5, "segment", "no")
	events := `[{"event":"Seen","properties":{"token":"` + c.Creds.ProjectToken + `","distinct_id":"ghost"}},{"event":"Seen","properties":{"token":"` + c.Creds.ProjectToken + `","distinct_id":"in-3"}}]`
	if a := c.MustDo(t, "POST", "/track", []byte(events), harness.JSONHead); string(a.Body) != "1" {
		t.Fatalf("/track: %s", a.Body)
	}
	one := 1.0
	seen := &typev1.Expression{Node: &typev1.Expression_Behavior{Behavior: &typev1.BehaviorLeaf{Events: []string{"Seen"}, Threshold: &one}}}
	anyOf := &typev1.Expression{Node: &typev1.Expression_AnyOf{AnyOf: &typev1.ExpressionList{Operands: []*typev1.Expression{harness.PropertyIs("segment", "yes"), seen}}}}
	members, watchers := c.Cohort(t, "Members and seen", anyOf), c.Cohort(t, "Seen", seen)

	a := c.MustDo(t, "POST", "/api/query/cohorts/list?project_id="+c.Creds.ProjectID, nil, nil)
	var list []struct {
		ID        int64 `json:"id"`
		Count     int   `json:"count"`
		ProjectID int64 `json:"project_id"`
		Visible   int   `json:"is_visible"`
		Name      string
		Created   string
	}
	if err := json.Unmarshal(a.Body, &list); err != nil || a.Status != 200 || len(list) != 2 {
		t.Fatalf("cohorts: HTTP %d %v %s", a.Status, err, a.Body)
	}
	if l := list[0]; l.Name != "Members and seen" || l.Count != 13 || l.Visible != 1 || !strings.HasSuffix(members, fmt.Sprint("/", l.ID)) || fmt.Sprint(l.ProjectID) != c.Creds.ProjectID {
		t.Errorf("the first cohort is %+v", l)
	}
	if _, err := time.Parse(time.DateTime, list[1].Created); err != nil || list[1].Count != 2 || !strings.HasSuffix(watchers, fmt.Sprint("/", list[1].ID)) {
		t.Errorf("the second cohort is %+v, %v", list[1], err)
	}

	// Form parts joined without encoding, paging by query, until a page is short.
	read := func(form string) (out []string) {
		t.Helper()
		params := url.Values{"project_id": {c.Creds.ProjectID}, "page_size": {"5"}}
		for page := 0; ; page++ {
			a := c.MustDo(t, "POST", "/api/query/engage?"+params.Encode(), []byte(form), map[string]string{"Content-Type": "application/x-www-form-urlencoded"})
			p := decodePage(t, a.Status, a.Body)
			if p.Page != page || p.PageSize != 5 {
				t.Fatalf("page %d: %+v", page, p)
			}
			out = append(out, ids(p.Results)...)
			if len(p.Results) < p.PageSize {
				if len(out) != p.Total {
					t.Fatalf("%d users on the pages, total %d", len(out), p.Total)
				}
				return out
			}
			params.Set("session_id", p.SessionID)
			params.Set("page", strconv.Itoa(page+1))
		}
	}
	cohort := fmt.Sprintf(`filter_by_cohort={"id": %d}`, list[0].ID)
	if got := read(cohort); len(got) != 13 || got[0] != "ghost" || !slices.IsSorted(got) {
		t.Errorf("with the one without a profile: %v", got)
	}
	if got := read(cohort + "&include_all_users=false"); len(got) != 12 || slices.Contains(got, "ghost") {
		t.Errorf("without: %v", got)
	}
	if got := read(fmt.Sprintf(`filter_by_cohort={"id": %d}&where=user["segment"] == "yes"`, list[1].ID)); !reflect.DeepEqual(got, []string{"in-3"}) {
		t.Errorf("with an expression: %v", got)
	}
	if got := read(""); len(got) != 17 {
		t.Errorf("all: %d", len(got))
	}
	a = c.MustDo(t, "POST", "/api/query/engage?project_id="+c.Creds.ProjectID, []byte(`filter_by_cohort={"id": 999}`), nil)
	if a.Status != 404 {
		t.Errorf("an unknown cohort: %d %s", a.Status, a.Body)
	}
	secret := &utils{t: t, base: c.Base, user: c.Creds.ProjectSecret}
	if got := secret.queryEngage(url.Values{"filter_by_cohort": {fmt.Sprintf(`{"id":%d}`, list[0].ID)}}); len(got) != 13 {
		t.Errorf("with the project secret: %d", len(got))
	}
}

func TestReadingNeedsARoleAndASessionIsItsCallersOwn(t *testing.T) {
	dir := t.TempDir()
	p := harness.Standalone(t, dir)
	c := p.Client(t)
	other := p.NewProject(t, dir, typev1.IdentitySystem_IDENTITY_SYSTEM_SIMPLIFIED)
	c.People(t, "u", 0, 3, "a", "b")
	acc, err := c.Projects().CreateServiceAccount(t.Context(), &registryv1.CreateServiceAccountRequest{Parent: c.Project, ServiceAccount: &registryv1.ServiceAccount{DisplayName: "reader", Role: typev1.Role_ROLE_CONSUMER}})
	if err != nil {
		t.Fatal(err)
	}
	harness.Secret("service secret", acc.GetSecret())
	consumer := &utils{t, c.Base, acc.GetServiceAccount().GetUsername(), acc.GetSecret(), c.Creds.ProjectID}
	owner := utilsOf(t, c)
	status, _, body := owner.get("engage", url.Values{"page_size": {"2"}}, false)
	session := url.Values{"session_id": {decodePage(t, status, body).SessionID}, "page": {"1"}}
	if status, _, body := owner.get("engage", session, false); len(decodePage(t, status, body).Results) != 1 {
		t.Errorf("the owner's second page: %s", body)
	}
	if got := consumer.queryEngage(nil); len(got) != 3 {
		t.Errorf("a consumer reads %d profiles", len(got))
	}
	if status, _, body := consumer.get("engage", session, false); status != 400 || !strings.Contains(string(body), "session_id") {
		t.Errorf("a session of somebody else: %d %s", status, body)
	}
	stranger := utilsOf(t, other)
	if got := stranger.queryEngage(nil); len(got) != 0 {
		t.Errorf("another project holds %d profiles", len(got))
	}
	stranger.projectID = c.Creds.ProjectID
	for _, path := range []string{"engage", "cohorts/list", "export"} {
		params := url.Values{"from_date": {"2026-11-01"}, "to_date": {"2026-11-02"}}
		if status, _, body := stranger.get(path, params, false); status != 403 {
			t.Errorf("a stranger reads %s: %d %s", path, status, body)
		}
		if status, _, body := (&utils{t, c.Base, c.Creds.ServiceAccount, c.Creds.ServiceSecret, ""}).get(path, params, false); status != 400 || !strings.Contains(string(body), "project_id") {
			t.Errorf("%s without project_id: %d %s", path, status, body)
		}
		if status, _, body := (&utils{t, c.Base, other.Creds.ProjectSecret, "", c.Creds.ProjectID}).get(path, params, false); status != 403 {
			t.Errorf("another project's secret reads %s: %d %s", path, status, body)
		}
	}
}
