package ingestion_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/protobuf/proto"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// queried is a page as it came.
type queried struct {
	*ingestionv1.ProfilePage
	ids   []string
	props []map[string]any
}

func (h *harness) tryQuery(req *ingestionv1.QueryProfilesRequest) (*queried, error) {
	h.t.Helper()
	if req.GetParent() == "" {
		req.Parent = "projects/1"
	}
	stream, err := h.data.QueryProfiles(context.Background(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	out := &queried{}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if m.GetPage() != nil {
			out.ProfilePage = m.GetPage()
		}
		for _, p := range m.GetProfiles() {
			var props map[string]any
			mustDecode(h.t, []byte(p.GetPropertiesJson()), &props)
			out.ids, out.props = append(out.ids, p.GetDistinctId()), append(out.props, props)
		}
	}
}

func (h *harness) query(req *ingestionv1.QueryProfilesRequest) *queried {
	h.t.Helper()
	q, err := h.tryQuery(req)
	if err != nil {
		h.t.Fatal(err)
	}
	return q
}

func (h *harness) userSet(nos ...uint64) *ingestionv1.UserSet {
	h.t.Helper()
	b, err := roaring64.BitmapOf(nos...).ToBytes()
	if err != nil {
		h.t.Fatal(err)
	}
	return &ingestionv1.UserSet{Roaring: b, Count: uint64(len(nos))}
}

func (h *harness) userNo(id string) uint64 {
	h.t.Helper()
	r, err := h.who.LookupIdentity(context.Background(), &ingestionv1.LookupIdentityRequest{Parent: "projects/1", DistinctId: id})
	if err != nil {
		h.t.Fatal(err)
	}
	return r.GetUserNo()
}

func TestProfilesAreQueriedByIDsExpressionAndUserSet(t *testing.T) {
	h := newHarness(t)
	h.engage(1, set("zoe", props{"plan": "pro", "n": 1}), set("adam", props{"plan": "free", "n": 2, "tags": []any{"x"}}), set("mia", props{"n": 3}))
	h.importStrict(1, ev("Seen", start.Add(-time.Hour), "ghost", "i1", nil))
	ghost, zoe, mia := h.userNo("ghost"), h.userNo("zoe"), h.userNo("mia")
	type req = ingestionv1.QueryProfilesRequest
	for name, tc := range map[string]struct {
		req  *req
		want string
	}{
		"all, by distinct id":         {&req{}, "adam mia zoe"},
		"one id":                      {&req{DistinctIds: []string{"mia"}}, "mia"},
		"ids, an unknown one":         {&req{DistinctIds: []string{"zoe", "nobody", "adam", "zoe"}}, "adam zoe"},
		"an id without profile":       {&req{DistinctIds: []string{"ghost"}}, ""},
		"expression":                  {&req{Where: `user["plan"] == "pro"`}, "zoe"},
		"properties is the profile":   {&req{Where: `properties["n"] >= 2`}, "adam mia"},
		"not defined":                 {&req{Where: `not defined(user["plan"])`}, "mia"},
		"list":                        {&req{Where: `"x" in user["tags"]`}, "adam"},
		"the id":                      {&req{Where: `user["$distinct_id"] in ["mia","zoe"]`}, "mia zoe"},
		"nobody":                      {&req{Where: `user["plan"] == "gold"`}, ""},
		"user set":                    {&req{Users: h.userSet(zoe, ghost)}, "zoe"},
		"user set with the ghost":     {&req{Users: h.userSet(zoe, ghost), IncludeAllUsers: true}, "ghost zoe"},
		"user set, ids":               {&req{Users: h.userSet(zoe, mia), DistinctIds: []string{"mia", "adam"}}, "mia"},
		"user set, expression":        {&req{Users: h.userSet(zoe, ghost), IncludeAllUsers: true, Where: `not defined(user["plan"])`}, "ghost"},
		"empty user set":              {&req{Users: &ingestionv1.UserSet{}}, ""},
		"another project has nothing": {&req{Parent: "projects/2"}, ""},
	} {
		got := h.query(tc.req)
		if ids := strings.Join(got.ids, " "); ids != tc.want || int(got.GetTotal()) != len(got.ids) {
			t.Errorf("%s: %q, total %d; want %q", name, ids, got.GetTotal(), tc.want)
		}
	}
	got := h.query(&req{DistinctIds: []string{"adam"}, OutputProperties: []string{"plan", "gone", "tags"}})
	if want := []map[string]any{{"plan": "free", "tags": []any{"x"}}}; !reflect.DeepEqual(got.props, want) {
		t.Errorf("output_properties: %v", got.props)
	}
	if got := h.query(&req{DistinctIds: []string{"adam"}}); got.props[0]["n"] != 2.0 || got.props[0]["plan"] != "free" {
		t.Errorf("all properties: %v", got.props)
	}
}

func TestPagesOfAQueryHoldEachUserOnceWhateverHappensMeanwhile(t *testing.T) {
	h := newHarness(t)
	const n = 25
	for i := range n {
		h.engage(1, set(fmt.Sprintf("u%02d", i), props{"i": i}))
	}
	first := h.query(&ingestionv1.QueryProfilesRequest{PageSize: 10})
	if first.GetTotal() != n || first.GetPageSize() != 10 || first.GetPage() != 0 || len(first.ids) != 10 || !first.GetComputeTime().AsTime().Equal(start) {
		t.Fatalf("first page: %v", first)
	}
	// Somebody comes, somebody's profile goes, somebody changes.
	h.engage(1, set("u00a", props{"i": 1}), props{"$distinct_id": "u11", "$delete": ""}, set("u12", props{"i": "new"}))
	all := first.ids
	for page := int32(1); page < 4; page++ {
		got := h.query(&ingestionv1.QueryProfilesRequest{SessionId: first.GetSessionId(), Page: page})
		if got.GetSessionId() != first.GetSessionId() || got.GetTotal() != n || got.GetPageSize() != 10 || got.GetPage() != page {
			t.Errorf("page %d: %v", page, got.ProfilePage)
		}
		all = append(all, got.ids...)
		if page == 1 && (len(got.props[1]) != 0 || got.props[2]["i"] != "new") {
			t.Errorf("a deleted profile has %v, a changed one %v", got.props[1], got.props[2])
		}
	}
	if len(all) != n {
		t.Fatalf("%d users on the pages", len(all))
	}
	for i, id := range all {
		if id != fmt.Sprintf("u%02d", i) {
			t.Fatalf("user %d is %s", i, id)
		}
	}
	if again := h.query(&ingestionv1.QueryProfilesRequest{SessionId: first.GetSessionId(), OutputProperties: []string{"x"}}); !reflect.DeepEqual(again.ids, first.ids) {
		t.Errorf("page 0 again: %v", again.ids)
	}
	h.now.Add((31 * time.Minute).Milliseconds())
	if _, err := h.tryQuery(&ingestionv1.QueryProfilesRequest{SessionId: first.GetSessionId(), Page: 1}); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after its life: %v", err)
	}
}

// merge says in an ORIGINAL project that two ids are one user's.
func (h *harness) merge(a, b string) {
	h.t.Helper()
	body := form("data", string(toJSON(h.t, props{"event": "$merge", "properties": props{"$distinct_ids": []string{a, b}}})))
	h.raw(&ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: "application/x-www-form-urlencoded", Authorization: basic("secret-2", ""), Body: body})
}

func TestAUserMergedAwayKeepsItsPlaceOnThePage(t *testing.T) {
	h := newHarness(t)
	h.engage(2, set("a", props{"x": 1}), set("b", props{"x": 2}))
	first := h.query(&ingestionv1.QueryProfilesRequest{Parent: "projects/2", PageSize: 2})
	h.merge("a", "b")
	again := h.query(&ingestionv1.QueryProfilesRequest{Parent: "projects/2", SessionId: first.GetSessionId()})
	if strings.Join(again.ids, " ") != "a b" || len(again.props[0])*len(again.props[1]) != 0 {
		t.Errorf("after the merge: %v %v", again.ids, again.props)
	}
	// One of the two is the user now, and is answered under that id, whichever is asked for.
	user, err := h.who.LookupIdentity(context.Background(), &ingestionv1.LookupIdentityRequest{Parent: "projects/2", DistinctId: "b"})
	if err != nil {
		t.Fatal(err)
	}
	for _, ids := range [][]string{nil, {"a"}, {"b"}} {
		now := h.query(&ingestionv1.QueryProfilesRequest{Parent: "projects/2", DistinctIds: ids})
		if now.GetTotal() != 1 || strings.Join(now.ids, " ") != user.GetCanonicalId() {
			t.Errorf("a new query for %v has %v, want %s alone", ids, now.ids, user.GetCanonicalId())
		}
	}
}

func TestAQueryAnswersTheCanonicalID(t *testing.T) {
	h := newHarness(t)
	h.importStrict(2, ev("E", start, "b", "e1", nil), ev("E", start, "a", "e2", nil), ev("E", start, "other", "e3", nil))
	h.engage(2, set("a", props{"x": 1}), set("b", props{"y": 2}), set("other", props{"x": 1}))
	h.merge("b", "a")
	// The id that the merge names first stays, in events and in profiles, whichever is asked for.
	owners := h.owners(2)
	if owners["e1"] != "b" || owners["e2"] != "b" {
		t.Fatalf("the events are of %v", owners)
	}
	for what, req := range map[string]*ingestionv1.QueryProfilesRequest{
		"all":                   {},
		"by the id that stayed": {DistinctIds: []string{"b"}},
		"by the other id":       {DistinctIds: []string{"a"}},
		"by both":               {DistinctIds: []string{"a", "b"}},
		"by expression":         {Where: `user["$distinct_id"] == "b"`},
		"by a property":         {Where: `properties["y"] == 2`},
	} {
		req.Parent = "projects/2"
		got := h.query(req)
		want := "b"
		if what == "all" {
			want = "b other"
		}
		if strings.Join(got.ids, " ") != want || got.props[0]["x"] != 1.0 || got.props[0]["y"] != 2.0 {
			t.Errorf("%s: %v %v, want %s", what, got.ids, got.props, want)
		}
	}
}

func TestAnIDMeansTheSameInExpressionsOfExportsAndOfQueries(t *testing.T) {
	h := newHarness(t)
	h.importStrict(2, ev("E", start, "b", "b1", nil), ev("E", start, "a", "a1", nil), ev("E", start, "other", "o1", nil), ev("E", start, "bare", "n1", nil), ev("E", start, "", "nobody", props{"distinct_id": ""}))
	h.engage(2, set("a", props{"x": 1}), set("b", props{"x": 2}), set("other", props{"x": 1}))
	h.merge("b", "a")
	for src, want := range map[string][2]string{
		`%s["%sdistinct_id"] == "b"`:                 {"a1 b1", "b"},
		`%s["%sdistinct_id"] == "other"`:             {"o1", "other"},
		`%s["%sdistinct_id"] == "a"`:                 {"", ""}, // it is b now
		`%s["%sdistinct_id"] in ["b", "other"]`:      {"a1 b1 o1", "b other"},
		`"th" in %s["%sdistinct_id"]`:                {"o1", "other"},
		`%s["%sdistinct_id"] == "bare"`:              {"n1", ""}, // who has no profile is in no query
		`defined(%[1]s["%[2]sdistinct_id"]) == true`: {"a1 b1 n1 o1", "b other"},
	} {
		for _, scope := range []string{"user", "properties"} {
			for _, dollar := range []string{"", "$"} {
				where := fmt.Sprintf(src, scope, dollar)
				events, err := h.exportWhere(&ingestionv1.ExportEventsRequest{Parent: "projects/2", FromDate: "2026-03-30", ToDate: "2026-04-01", Events: []string{"E"}, Where: where})
				slices.Sort(events)
				events = slices.DeleteFunc(events, func(id string) bool { return scope == "properties" && id == "nobody" }) // its id is "", which is defined
				if got := strings.Join(events, " "); err != nil || got != want[0] {
					t.Errorf("%s exports %q, %v; want %q", where, got, err, want[0])
				}
				if got := strings.Join(h.query(&ingestionv1.QueryProfilesRequest{Parent: "projects/2", Where: where}).ids, " "); got != want[1] {
					t.Errorf("%s selects the profiles %q, want %q", where, got, want[1])
				}
			}
		}
	}
}

func TestGroupProfilesAreQueriedAsUsersAre(t *testing.T) {
	h := newHarness(t)
	for i, id := range []string{"zeta", "acme", "mono"} {
		body := toJSON(t, []props{{"$token": "tok-1", "$group_key": "company", "$group_id": id, "$set": props{"size": i}}, {"$token": "tok-1", "$group_key": "team", "$group_id": id, "$set": props{"size": 99}}})
		if r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: ingestionv1.IngestRawRequest_ENDPOINT_GROUPS, ContentType: "application/json", Body: body}); string(r.GetBody()) != "1" {
			t.Fatalf("groups answered %s", r.GetBody())
		}
	}
	all := h.query(&ingestionv1.QueryProfilesRequest{GroupKey: "company", PageSize: 2})
	next := h.query(&ingestionv1.QueryProfilesRequest{SessionId: all.GetSessionId(), Page: 1})
	if got := strings.Join(append(all.ids, next.ids...), " "); got != "acme mono zeta" || all.GetTotal() != 3 {
		t.Errorf("groups: %s", got)
	}
	if got := h.query(&ingestionv1.QueryProfilesRequest{GroupKey: "company", Where: `properties["size"] > 0`, DistinctIds: []string{"acme", "zeta"}}); strings.Join(got.ids, " ") != "acme" || got.props[0]["size"] != 1.0 {
		t.Errorf("one group: %v %v", got.ids, got.props)
	}
}

func TestQueriesThatMakeNoSenseAreRefusedByName(t *testing.T) {
	h := newHarness(t)
	h.engage(1, set("a", props{"x": 1}))
	type req = ingestionv1.QueryProfilesRequest
	hostile := roaring64.New()
	hostile.AddRange(0, 1<<32)
	huge, err := hostile.ToBytes()
	if err != nil {
		t.Fatal(err)
	}
	first := h.query(&req{PageSize: 5})
	for name, tc := range map[string]struct {
		req *req
		say string
	}{
		"expression":            {&req{Where: `user["a"] = 1`}, "where: at character 11"},
		"event":                 {&req{Where: `event["a"] == 1`}, "where: at character 1: this has no meaning here"},
		"page without session":  {&req{Page: 1}, "page: beyond 0 needs the session_id"},
		"unknown session":       {&req{SessionId: "abc"}, "session_id: is unknown or has expired"},
		"another project's":     {&req{Parent: "projects/2", SessionId: first.GetSessionId()}, "session_id: is unknown or has expired"},
		"another page size":     {&req{SessionId: first.GetSessionId(), PageSize: 7}, "page_size: must be that of the first page, 5"},
		"include without users": {&req{IncludeAllUsers: true}, "include_all_users: only goes with users"},
		"groups with users":     {&req{GroupKey: "company", Users: h.userSet(1)}, "users: does not go with group_key"},
		"no bitmap":             {&req{Users: &ingestionv1.UserSet{Roaring: []byte("abc")}}, "users.roaring: not a portable"},
		"announces too much":    {&req{Users: &ingestionv1.UserSet{Roaring: []byte("\xff\xff\xff\xff\xff\xff\xff\x7f\x00\x00\x00\x00")}}, "users.roaring: not a portable"},
		"stands for 2^32 users": {&req{Users: &ingestionv1.UserSet{Roaring: huge}}, "users.roaring: more than 20,000,000 users"},
	} {
		if _, err := h.tryQuery(tc.req); err == nil || !strings.Contains(err.Error(), tc.say) {
			t.Errorf("%s: %v, want %q", name, err, tc.say)
		}
	}
}

// exportWhere is the insert ids of the events exported for which an expression is true.
func (h *harness) exportWhere(req *ingestionv1.ExportEventsRequest) ([]string, error) {
	h.t.Helper()
	stream, err := h.data.ExportEvents(context.Background(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	out := []string{}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		for _, e := range m.GetEvents() {
			out = append(out, e.GetInsertId())
		}
	}
}

func TestEventsAreExportedByExpression(t *testing.T) {
	h := newHarness(t)
	h.engage(1, set("payer", props{"plan": "pro"}))
	h.importStrict(1, ev("Buy", time.Date(2026, 3, 30, 23, 59, 59, 0, time.UTC), "payer", "p1", props{"amount": 10, "currency": "INR"}),
		ev("Buy", time.Date(2026, 3, 31, 0, 0, 0, 0, time.UTC), "other", "o1", props{"amount": "10"}),
		ev("View", time.Date(2026, 3, 31, 11, 0, 0, 0, time.UTC), "payer", "p2", props{"amount": 3}))
	for src, want := range map[string][]string{
		``:                           {"o1", "p1", "p2"},
		`user["plan"] == "pro"`:      {"p1", "p2"},
		`properties["amount"] == 10`: {"p1"},
		`number(properties["amount"]) >= 10 and not defined(properties["currency"])`: {"o1"},
		`event["$time"] >= datetime("2026-03-31T00:00:00")`:                          {"o1", "p2"},
		`properties["time"] < 1774915200`:                                            {"p1"},
		`properties["distinct_id"] == "other"`:                                       {"o1"},
		`properties["$insert_id"] in ["p2"]`:                                         {"p2"},
		`event["$event_name"] == "View"`:                                             {"p2"},
		`properties["$import"] and "IN" in properties["currency"]`:                   {"p1"},
		`properties["mp_processing_time_ms"] > 0`:                                    {"o1", "p1", "p2"},
		`user["plan"] == "gold"`:                                                     {},
		`user["$distinct_id"] == "payer"`:                                            {"p1", "p2"},
		`user["distinct_id"] == "other"`:                                             {"o1"},
	} {
		got, err := h.exportWhere(&ingestionv1.ExportEventsRequest{Parent: "projects/1", FromDate: "2026-03-30", ToDate: "2026-03-31", Where: src})
		if err != nil {
			t.Fatalf("%s: %v", src, err)
		}
		if fmt.Sprint(slices.Sorted(slices.Values(got))) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", src, got, want)
		}
	}
	// The days are inclusive, both of them, in UTC.
	for days, want := range map[[2]string]int{{"2026-03-30", "2026-03-30"}: 1, {"2026-03-31", "2026-03-31"}: 2, {"2026-03-30", "2026-03-31"}: 3, {"2026-04-01", "2026-04-01"}: 0} {
		got, err := h.exportWhere(&ingestionv1.ExportEventsRequest{Parent: "projects/1", FromDate: days[0], ToDate: days[1]})
		if err != nil || len(got) != want {
			t.Errorf("%v: %v, %v", days, got, err)
		}
	}
	for field, req := range map[string]*ingestionv1.ExportEventsRequest{
		"from_date: is required":                       {ToDate: "2026-03-31"},
		"to_date: must be a day that exists":           {FromDate: "2026-03-30", ToDate: "2026-02-30"},
		"from_date: must be a day that exists, as yyy": {FromDate: "2026-3-1", ToDate: "2026-03-31"},
		"to_date: must not be before from_date":        {FromDate: "2026-03-31", ToDate: "2026-03-30"},
		"where: at character 9: want ]":                {FromDate: "2026-03-30", ToDate: "2026-03-31", Where: `user["a"`},
	} {
		req.Parent = "projects/1"
		if _, err := h.exportWhere(req); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestAnExportStopsAtItsLimitOfWantedEvents(t *testing.T) {
	h := newHarness(t)
	var batch []props
	for i := range 1500 {
		batch = append(batch, ev("E", start.Add(-time.Duration(i)*time.Second), "u", fmt.Sprintf("i%d", i), props{"odd": i%2 == 1}))
	}
	h.importStrict(1, batch...)
	for limit, src := range map[int64]string{1: `properties["odd"]`, 700: `properties["odd"]`, 750: `properties["odd"]`, 751: `properties["odd"]`, 1000: "", 1001: "", 1500: "", 2000: ""} {
		got, err := h.exportWhere(&ingestionv1.ExportEventsRequest{Parent: "projects/1", FromDate: "2026-03-30", ToDate: "2026-03-31", Limit: limit, Where: src})
		want := min(int(limit), 1500)
		if src != "" {
			want = min(int(limit), 750)
		}
		seen := map[string]bool{}
		for _, id := range got {
			seen[id] = true
		}
		if err != nil || len(got) != want || len(seen) != want {
			t.Errorf("limit %d %s: %d events, %d different, %v", limit, src, len(got), len(seen), err)
		}
	}
}

func TestALargePageComesInMessagesOfBoundedSize(t *testing.T) {
	h := newHarness(t)
	text := strings.Repeat("x", 200_000)
	for i := range 12 {
		h.engage(1, props{"$distinct_id": fmt.Sprint("u", i), "$set": props{"l": []any{text}}})
	}
	stream, err := h.data.QueryProfiles(context.Background(), &ingestionv1.QueryProfilesRequest{Parent: "projects/1"})
	if err != nil {
		t.Fatal(err)
	}
	messages, profiles := 0, 0
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := proto.Size(m); n > 2<<20 {
			t.Errorf("a message of %d bytes", n)
		}
		messages++
		profiles += len(m.GetProfiles())
	}
	if messages < 3 || profiles != 12 {
		t.Errorf("%d messages, %d profiles", messages, profiles)
	}
}
