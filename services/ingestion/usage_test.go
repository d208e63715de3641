package ingestion_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

func (h *harness) month(projectID int64, month string) *ingestionv1.GetUsageResponse {
	h.t.Helper()
	r, err := h.use.GetUsage(context.Background(), &ingestionv1.GetUsageRequest{Parent: fmt.Sprintf("projects/%d", projectID), Month: month})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *harness) explain(projectID int64, month, id string) *ingestionv1.ExplainUserResponse {
	h.t.Helper()
	r, err := h.use.ExplainUser(context.Background(), &ingestionv1.ExplainUserRequest{Parent: fmt.Sprintf("projects/%d", projectID), Month: month, DistinctId: id})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func TestAClosedMonthKeepsTheUsersItHadAtItsEnd(t *testing.T) {
	h := newHarness(t)
	h.importStrict(1, ev("E", start, "", "c1", props{"$device_id": "D1"}), ev("E", start, "", "c2", props{"$device_id": "D2"}), ev("E", start, "U", "c3", nil))
	// Before the month's end, D1 turns out to be U: they count once.
	h.importStrict(1, ev("E", start, "", "c4", props{"$device_id": "D1", "$user_id": "U"}))
	if u := h.month(1, "2026-03"); u.GetMtu() != 2 || u.GetClosed() {
		t.Errorf("in March: %v", u)
	}
	h.tick(24 * time.Hour)
	// In April D2 turns out to be U too: April knows, March stays as it was.
	h.importStrict(1, ev("E", h.clock(), "", "c5", props{"$device_id": "D2", "$user_id": "U"}))
	for range 2 {
		if u := h.month(1, "2026-03"); u.GetMtu() != 2 || !u.GetClosed() {
			t.Errorf("March, after its end: %v", u)
		}
		if u := h.month(1, ""); u.GetMtu() != 1 || u.GetClosed() || u.GetMonth() != "2026-04" {
			t.Errorf("April: %v", u)
		}
		if e := h.explain(1, "2026-03", "$device:D2"); e.GetCanonicalId() != "$device:D2" || e.GetQualifyingEvents() != 1 || !e.GetCounted() {
			t.Errorf("D2 in March: %v", e)
		}
		if e := h.explain(1, "2026-04", "$device:D2"); e.GetCanonicalId() != "U" || e.GetQualifyingEvents() != 1 {
			t.Errorf("D2 in April: %v", e)
		}
		if e := h.explain(1, "2026-03", "U"); e.GetQualifyingEvents() != 3 {
			t.Errorf("U in March: %v", e)
		}
		h.restart()
	}
	// Fed again from nothing, it still is.
	if _, err := h.data.RebuildProjection(context.Background(), &ingestionv1.RebuildProjectionRequest{Parent: "projects/1"}); err != nil {
		t.Fatal(err)
	}
	if u := h.month(1, "2026-03"); u.GetMtu() != 2 {
		t.Errorf("March, after a rebuild: %v", u)
	}
}

func TestAMonthOfEventTimeCountsThoseWhoBecameOneOnce(t *testing.T) {
	h := newHarness(t)
	h.reg.projects[1].MTU.ByEventTime = true
	past := start.AddDate(0, 0, -45) // in February
	// History that is imported later, linked in the same breath.
	h.importStrict(1, ev("visit", past, "", "e1", props{"$device_id": "D"}), ev("login", past, "", "e2", props{"$device_id": "D", "$user_id": "U"}), ev("buy", past, "U", "e3", nil))
	// A device that was seen before, and events that come after the link.
	h.importStrict(1, ev("visit", start, "", "e4", props{"$device_id": "D2"}), ev("login", start, "", "e5", props{"$device_id": "D2", "$user_id": "U2"}))
	h.importStrict(1, ev("visit", past, "", "e6", props{"$device_id": "D2"}), ev("buy", past, "U2", "e7", nil))
	for month, want := range map[string]int64{"2026-02": 2, "2026-03": 1} {
		if u := h.month(1, month); u.GetMtu() != want || u.GetUsers() != want || u.GetClosed() {
			t.Errorf("%s: %v, want %d users of a month that is never over", month, u, want)
		}
	}
	for id, user := range map[string]string{"U": "U", "$device:D": "U", "U2": "U2", "$device:D2": "U2"} {
		events := map[string]int64{"U": 3, "U2": 2}[user]
		if e := h.explain(1, "2026-02", id); e.GetCanonicalId() != user || e.GetQualifyingEvents() != events {
			t.Errorf("%s in February: %v, want %s with %d events", id, e, user, events)
		}
	}
}

func TestUsageIsListedByMonthAndAsCSV(t *testing.T) {
	h := newHarness(t)
	h.importStrict(1, ev("E", start, "a", "l1", nil), ev("Notification Sent", start, "b", "l2", props{"$source": "clevertap"}))
	h.tick(24 * time.Hour)
	h.importStrict(1, ev("E", h.clock(), "a", "l3", nil), ev("E", h.clock(), "b", "l4", nil))
	r, err := h.use.ListUsage(context.Background(), &ingestionv1.ListUsageRequest{Parent: "projects/1"})
	if err != nil || len(r.GetMonths()) != 12 || r.GetMonths()[0].GetMonth() != "2025-05" || r.GetMonths()[0].GetMtu() != 0 || r.GetMonths()[10].GetMtu() != 1 || r.GetMonths()[11].GetMtu() != 2 {
		t.Errorf("%v, %v", r, err)
	}
	csv, err := h.use.ExportUsage(context.Background(), &ingestionv1.ExportUsageRequest{Parent: "projects/1", Until: "2026-04", Months: 2})
	want := "month,mtu,users,qualifying_events,exempt_events,exempt_only_users,guardrail_events,guardrail,closed\n2026-03,1,1,1,1,1,1,false,true\n2026-04,2,2,2,0,0,2,false,false\n"
	if err != nil || string(csv.GetData()) != want || !strings.HasPrefix(csv.GetContentType(), "text/csv") {
		t.Errorf("%s %q, %v, want %q", csv.GetContentType(), csv.GetData(), err, want)
	}
	if _, err := h.use.ListUsage(context.Background(), &ingestionv1.ListUsageRequest{Parent: "projects/1", Until: "2026-13"}); status.Code(err) == codes.OK {
		t.Error("a 13th month was accepted")
	}
}

func TestUsageBreaksDownByDaySourceAndEvent(t *testing.T) {
	h := newHarness(t)
	ct := props{"$source": "clevertap"}
	h.importStrict(1, ev("A", start, "", "b1", props{"$device_id": "D"}), ev("A", start, "U", "b2", nil), ev("Notification Sent", start, "U", "b3", ct), ev("A", start, "", "b4", props{"$device_id": "D", "$user_id": "U"}))
	h.tick(12 * time.Hour) // 2026-04-01
	h.importStrict(1, ev("B", start, "V", "b5", nil))
	h.importStrict(1, ev("B", start.AddDate(0, 0, -3), "V", "b6", props{"$source": "web"}))
	for _, c := range []struct {
		by    ingestionv1.BreakDownUsageRequest_By
		event bool
		want  string
	}{
		{ingestionv1.BreakDownUsageRequest_BY_DAY, false, "2026-03-31 1 3 1"},
		{ingestionv1.BreakDownUsageRequest_BY_DAY, true, "2026-03-28 1 1 0; 2026-03-31 2 4 1"},
		{ingestionv1.BreakDownUsageRequest_BY_SOURCE, false, " 1 3 0; clevertap 0 0 1"},
		{ingestionv1.BreakDownUsageRequest_BY_EVENT, false, "A 1 3 0; Notification Sent 0 0 1"},
	} {
		h.reg.projects[1].MTU.ByEventTime = c.event
		r, err := h.use.BreakDownUsage(context.Background(), &ingestionv1.BreakDownUsageRequest{Parent: "projects/1", Month: "2026-03", By: c.by})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, g := range r.GetGroups() {
			got = append(got, fmt.Sprintf("%s %d %d %d", g.GetKey(), g.GetUsers(), g.GetQualifyingEvents(), g.GetExemptEvents()))
		}
		if s := strings.Join(got, "; "); s != c.want {
			t.Errorf("%v, by event time %v: %q, want %q", c.by, c.event, s, c.want)
		}
	}
}

func TestAUserIsExplained(t *testing.T) {
	h := newHarness(t)
	ct := props{"$source": "clevertap"}
	h.importStrict(1, ev("Notification Sent", start, "a", "x1", ct), ev("App Launched", start.Add(-time.Hour), "a", "x2", nil),
		ev("Notification Sent", start, "b", "x3", ct), ev("Notification Viewed", start, "b", "x4", ct), ev("$identify", start, "b", "x5", nil), ev("Notification Sent", start, "c", "x6", ct))
	h.engage(1, set("silent", props{"a": 1}))
	for id, want := range map[string]string{
		"a":      "counted in 2026-03 because of `App Launched` at 2026-03-31T11:00:00Z",
		"b":      "not counted in 2026-03: 3 exempt events (2 of clevertap, 1 of general)",
		"c":      "not counted in 2026-03: 1 exempt event (1 of clevertap)",
		"silent": "not counted in 2026-03: no events",
	} {
		e := h.explain(1, "", id)
		if e.GetExplanation() != want || e.GetCounted() != (id == "a") || e.GetCanonicalId() != id {
			t.Errorf("%s: %v, want %q", id, e, want)
		}
	}
	if f := h.explain(1, "", "a").GetFirstQualifyingEvent(); f.GetEvent() != "App Launched" || !f.GetTime().AsTime().Equal(start.Add(-time.Hour)) || !f.GetProcessingTime().AsTime().Equal(start) || f.GetRulesVersion() != "1" {
		t.Errorf("first qualifying event %v", f)
	}
	if _, err := h.use.ExplainUser(context.Background(), &ingestionv1.ExplainUserRequest{Parent: "projects/1", DistinctId: "nobody"}); status.Code(err) != codes.NotFound && !strings.Contains(err.Error(), "no user has this id") {
		t.Errorf("an unknown id: %v", err)
	}
}

func TestAnExplanationSaysWhatDecidedTheMonth(t *testing.T) {
	h := newHarness(t)
	list := []props{ev("Old", start.AddDate(0, -2, 0), "u", "w0", nil)}
	for i := range 1500 {
		list = append(list, ev("E", start, "u", fmt.Sprint("w-", i), nil))
	}
	h.importStrict(1, list...)
	h.importStrict(2, ev("E", start, "u", "w1", nil))
	const processing, own = ingestionv1.ExplainUserResponse_MONTH_BASIS_PROCESSING_TIME, ingestionv1.ExplainUserResponse_MONTH_BASIS_EVENT_TIME
	for _, c := range []struct {
		project int64
		month   string
		byEvent bool
		basis   ingestionv1.ExplainUserResponse_MonthBasis
		guarded bool
		want    string
	}{
		{1, "2026-03", false, processing, true, "counted in 2026-03 because of `Old` at 2026-01-31T12:00:00Z, processed at 2026-03-31T12:00:00Z; the month's MTU of 2 is a thousandth of its 1501 events, rounded up, which is more than its users (1)"},
		{1, "2026-01", false, processing, false, "not counted in 2026-01: no events"},
		{1, "2026-01", true, own, false, "counted in 2026-01 because of `Old` at 2026-01-31T12:00:00Z"},
		{1, "2026-03", true, own, true, "counted in 2026-03 because of `E` at 2026-03-31T12:00:00Z; the month's MTU of 2 is a thousandth of its 1500 events, rounded up, which is more than its users (1)"},
		{2, "2026-03", false, processing, false, "counted in 2026-03 because of `E` at 2026-03-31T12:00:00Z"},
	} {
		h.reg.projects[c.project].MTU.ByEventTime = c.byEvent
		if e := h.explain(c.project, c.month, "u"); e.GetExplanation() != c.want || e.GetMonthBasis() != c.basis || e.GetGuardrail() != c.guarded {
			t.Errorf("%s, by event time %v: %v, want %q", c.month, c.byEvent, e, c.want)
		}
	}
}

func TestTheOrganisationIsTheSumOfItsProjects(t *testing.T) {
	h := newHarness(t)
	h.importStrict(1, ev("E", start, "same-person", "o1", nil), ev("E", start, "other", "o2", nil))
	h.importStrict(2, ev("E", start, "same-person", "o3", nil))
	r, err := h.use.GetOrganizationUsage(context.Background(), &ingestionv1.GetOrganizationUsageRequest{})
	if err != nil || r.GetMonth() != "2026-03" || r.GetMtu() != 3 || len(r.GetProjects()) != 2 || r.GetProjects()[0].GetProject() != "projects/1" || r.GetProjects()[0].GetUsage().GetMtu() != 2 {
		t.Errorf("%v, %v", r, err)
	}
}

// watchReclassification follows a job to its end.
func (h *harness) watchReclassification(name string) (last *ingestionv1.Reclassification) {
	h.t.Helper()
	stream, err := h.use.WatchReclassification(context.Background(), &ingestionv1.WatchReclassificationRequest{Name: name})
	if err != nil {
		h.t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			h.t.Fatal(err)
		}
		last = m.GetReclassification()
	}
}

func TestAReclassificationAppliesTheRulesOfNowAndShowsProgress(t *testing.T) {
	h := newHarness(t)
	var list []props
	for day := range 5 {
		for i := range 20 {
			list = append(list, ev("Notification Sent", start.AddDate(0, 0, -day), fmt.Sprintf("u%d", i), fmt.Sprintf("r%d-%d", day, i), props{"$source": "our tool"}), ev("Bought", start.AddDate(0, 0, -day), "u0", fmt.Sprintf("s%d-%d", day, i), nil))
		}
	}
	h.importStrict(1, list...)
	if u := h.month(1, ""); u.GetMtu() != 20 || u.GetExemptEvents() != 0 {
		t.Fatalf("before: %v", u)
	}
	changed := *h.reg.projects[1]
	changed.MTU.Sources = map[string][]string{"clevertap": {"Our Tool"}}
	h.reg.projects[1] = &changed
	resp, err := h.use.CreateReclassification(context.Background(), &ingestionv1.CreateReclassificationRequest{Parent: "projects/1", FromDate: "2026-03-28"})
	if err != nil {
		t.Fatal(err)
	}
	name := resp.GetReclassification().GetName()
	h.restart() // it goes on by itself
	last := h.watchReclassification(name)
	if last.GetState() != ingestionv1.Reclassification_STATE_SUCCEEDED || last.GetTotalEvents() != 160 || last.GetDoneEvents() != 160 || last.GetChangedEvents() != 80 || last.GetFromDate() != "2026-03-28" || last.GetToDate() != "" || last.GetEndTime() == nil {
		t.Errorf("job %v", last)
	}
	// The day before 28 March keeps its verdicts, and with it all 20 users.
	if u := h.month(1, ""); u.GetExemptByRule()["clevertap"] != 80 || u.GetMtu() != 20 || u.GetQualifyingEvents() != 120 {
		t.Errorf("after: %v", u)
	}
	if resp, err = h.use.CreateReclassification(context.Background(), &ingestionv1.CreateReclassificationRequest{Parent: "projects/1"}); err != nil {
		t.Fatal(err)
	}
	if j := h.watchReclassification(resp.GetReclassification().GetName()); j.GetState() != ingestionv1.Reclassification_STATE_SUCCEEDED || j.GetChangedEvents() != 20 {
		t.Errorf("second job %v", j)
	}
	if l, err := h.use.ListReclassifications(context.Background(), &ingestionv1.ListReclassificationsRequest{Parent: "projects/1"}); err != nil || len(l.GetReclassifications()) != 2 || l.GetReclassifications()[0].GetChangedEvents() != 20 {
		t.Errorf("%v, %v", l, err)
	}
	if u := h.month(1, ""); u.GetMtu() != 1 || u.GetExemptOnlyUsers() != 19 {
		t.Errorf("after the second: %v", u)
	}
	// Right after another change: the settings of now count, not those of ten seconds ago.
	again := changed
	again.MTU.Sources = map[string][]string{"clevertap": {"another tool"}}
	h.reg.projects[1] = &again
	if resp, err = h.use.CreateReclassification(context.Background(), &ingestionv1.CreateReclassificationRequest{Parent: "projects/1"}); err != nil {
		t.Fatal(err)
	}
	if j := h.watchReclassification(resp.GetReclassification().GetName()); j.GetChangedEvents() != 100 {
		t.Errorf("third job %v, want all 100 to count again", j)
	}
	if _, err := h.use.CreateReclassification(context.Background(), &ingestionv1.CreateReclassificationRequest{Parent: "projects/1", FromDate: "2026-03-28", ToDate: "2026-03-27"}); err == nil {
		t.Error("an empty range was accepted")
	}
}
