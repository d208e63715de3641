package warehousetest

import (
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

func usage(t *testing.T, open Open) {
	f := begin(t, open)
	exempt := func(user uint64, rule string) warehouse.Row {
		r := f.row(user, "X", base, "{}")
		r.Rule, r.Source, r.Flags = rule, []byte("clevertap"), 0
		return r
	}
	late := f.row(9, "E", base, "{}")
	late.ReceivedMS = base + day
	f.append(f.row(1, "E", base, "{}"), f.row(1, "E", base-1, "{}"), exempt(1, "clevertap"), exempt(2, "clevertap"), exempt(3, "general"), f.row(0, "E", base, "{}"), late)
	u, err := f.w.Usage(context.Background(), warehouse.UsageQuery{ProjectID: 1, FromMS: base, ToMS: base + 1})
	if err != nil {
		t.Fatal(err)
	}
	if u.Users != 1 || u.ExemptOnly != 2 || u.Qualifying != 3 || u.Exempt != 3 || u.Guardrail != 3 || u.ExemptByRule["clevertap"] != 2 || u.BySource["clevertap"] != 3 || u.BySource[""] != 3 {
		t.Errorf("usage %+v", u)
	}
	if u, _ := f.w.Usage(context.Background(), warehouse.UsageQuery{ProjectID: 1, FromMS: base, ToMS: base + 1, ByEventTime: true}); u.Users != 2 {
		t.Errorf("by event time: %+v", u)
	}
}

// now is the span that has what row makes.
var now = warehouse.UsageQuery{ProjectID: 1, FromMS: base, ToMS: base + 1}

func usageBefore(t *testing.T, open Open) {
	f := begin(t, open)
	f.append(f.row(1, "E", base, "{}"), f.row(2, "E", base, "{}"), f.row(3, "E", base, "{}"), f.row(70, "E", base, "{}"))
	merge := func(at int64, no, into uint64) {
		f.seq++
		f.feed(at, []ledger.Change{{UserNo: no, Canonical: into, Seq: f.seq}})
	}
	merge(base, 3, 2)
	merge(base+10, 2, 1)
	merge(base+10, 3, 1)
	for before, want := range map[int64]int64{base: 4, base + 1: 3, base + 10: 3, base + 11: 2, 0: 2} {
		q := now
		q.MergedBeforeMS = before
		u, err := f.w.Usage(context.Background(), q)
		if err != nil || u.Users != want {
			t.Errorf("merged before base%+d: %d users, %v, want %d", before-base, u.Users, err, want)
		}
		g, err := f.w.BreakDown(context.Background(), q, warehouse.ByEvent, 10)
		if err != nil || len(g) != 1 || g[0].Users != want {
			t.Errorf("broken down, merged before base%+d: %+v, %v, want %d", before-base, g, err, want)
		}
	}
}

func breakDown(t *testing.T, open Open) {
	f := begin(t, open)
	mark := func(r warehouse.Row, source, rule string, received int64) warehouse.Row {
		r.Source, r.Rule, r.ReceivedMS = []byte(source), rule, received
		return r
	}
	f.append(
		mark(f.row(1, "A", base-day, "{}"), "", "", base), mark(f.row(1, "A", base, "{}"), "s", "", base), mark(f.row(2, "A", base, "{}"), "s", "", base+day),
		mark(f.row(2, "B", base, "{}"), "s", "r", base), mark(f.row(0, "B", base, "{}"), "", "", base), mark(f.row(9, "C", base, "{}"), "", "", base+40*day),
	)
	q := warehouse.UsageQuery{ProjectID: 1, FromMS: base - day, ToMS: base + 2*day}
	today := base / day
	for _, c := range []struct {
		by    warehouse.GroupBy
		event bool
		want  []warehouse.UsageGroup
	}{
		{warehouse.ByDay, false, []warehouse.UsageGroup{{Day: today, Users: 1, Qualifying: 3, Exempt: 1}, {Day: today + 1, Users: 1, Qualifying: 1}}},
		{warehouse.ByDay, true, []warehouse.UsageGroup{{Day: today - 1, Users: 1, Qualifying: 1}, {Day: today, Users: 3, Qualifying: 4, Exempt: 1}}},
		{warehouse.BySource, false, []warehouse.UsageGroup{{Key: "s", Users: 2, Qualifying: 2, Exempt: 1}, {Key: "", Users: 1, Qualifying: 2}}},
		{warehouse.ByEvent, false, []warehouse.UsageGroup{{Key: "A", Users: 2, Qualifying: 3}, {Key: "B", Qualifying: 1, Exempt: 1}}},
	} {
		q.ByEventTime = c.event
		got, err := f.w.BreakDown(context.Background(), q, c.by, 10)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("by %d, event time %v: %+v, %v, want %+v", c.by, c.event, got, err, c.want)
		}
	}
	if got, _ := f.w.BreakDown(context.Background(), q, warehouse.ByEvent, 1); len(got) != 1 {
		t.Errorf("limit 1: %+v", got)
	}
}

func userUsage(t *testing.T, open Open) {
	f := begin(t, open)
	first, exempt := f.row(2, "First", base-5, "{}"), f.row(1, "X", base, "{}")
	first.Source, first.RulesVersion = []byte("s"), 7
	exempt.Rule = "clevertap"
	later := f.row(1, "Later", base-9, "{}")
	later.ReceivedMS = base + 1
	f.append(later, first, exempt, f.row(3, "Other", base, "{}"))
	q := warehouse.UsageQuery{ProjectID: 1, FromMS: base, ToMS: base + 2}
	u, err := f.w.UserUsage(context.Background(), q, []uint64{1, 2})
	want := warehouse.CountedEvent{Name: "First", Source: "s", RulesVersion: 7, TimeMS: base - 5, ReceivedMS: base}
	if err != nil || u.Qualifying != 2 || !maps.Equal(u.ExemptByRule, map[string]int64{"clevertap": 1}) || u.First == nil || *u.First != want {
		t.Errorf("%+v, %+v, %v", u, u.First, err)
	}
	if u, err := f.w.UserUsage(context.Background(), q, []uint64{4}); err != nil || u.Qualifying != 0 || u.First != nil {
		t.Errorf("nobody's: %+v, %v", u, err)
	}
}

func reclassify(t *testing.T, open Open) {
	f := begin(t, open)
	ours := f.row(1, "Notification Sent", base, `{"$partner_id":"p"}`)
	ours.Source = []byte("ct")
	was := f.row(2, "Old", base, "{}")
	was.Rule, was.Flags = "old", warehouse.FlagImport
	other := f.row(3, "Notification Sent", base-day, "{}")
	f.append(ours, was, f.row(4, "Bought", base, "{}"), other)
	today := int32(base / day)
	days, err := f.w.Days(context.Background(), 1, 0, today)
	if err != nil || !slices.Equal(days, []warehouse.DayCount{{Day: today - 1, Events: 1}, {Day: today, Events: 3}}) {
		t.Errorf("days %+v, %v", days, err)
	}
	var seen []warehouse.Judged
	n, err := f.w.Reclassify(context.Background(), 1, today, []string{"Notification Sent"}, 9, func(j warehouse.Judged) mtu.Verdict {
		seen = append(seen, j)
		if j.Name == "Old" {
			return mtu.Verdict{Guardrail: true}
		}
		return mtu.Verdict{Rule: "clevertap"}
	})
	if err != nil || n != 2 || len(seen) != 2 {
		t.Fatalf("%d changed, %v, judged %+v", n, err, seen)
	}
	for _, j := range seen {
		if j.Name == "Notification Sent" && (j.Source != "ct" || j.PartnerID != "p" || !j.Verdict.Guardrail || j.Verdict.Rule != "") {
			t.Errorf("judged %+v", j)
		}
	}
	got := map[string]warehouse.Exported{}
	for _, e := range f.exported() {
		if e.TimeMS == base {
			got[e.Name] = e
		}
	}
	if e := got["Notification Sent"]; e.Rule != "clevertap" || e.Flags&warehouse.FlagGuardrail != 0 || string(e.Props) != `{"$partner_id":"p"}` || e.UserNo != 1 {
		t.Errorf("exempted %+v", e)
	}
	if e := got["Old"]; e.Rule != "" || e.Flags != warehouse.FlagGuardrail|warehouse.FlagImport {
		t.Errorf("counting again %+v", e)
	}
	if len(got) != 3 || got["Bought"].Rule != "" {
		t.Errorf("exported %+v", got)
	}
	if out := f.append(ours, was); out.Duplicates != 2 {
		t.Errorf("sent again after a reclassification: %+v", out)
	}
	if n, err := f.w.Reclassify(context.Background(), 1, today, []string{"Notification Sent"}, 9, func(j warehouse.Judged) mtu.Verdict { return j.Verdict }); n != 0 || err != nil {
		t.Errorf("the same verdicts: %d changed, %v", n, err)
	}
}
