// Package warehousetest is what every warehouse.Warehouse must do.
package warehousetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/leaf"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Open opens the warehouse of a directory, the same data each time.
type Open func(t *testing.T, dir string) warehouse.Warehouse

const day = 86_400_000

// base is the instant the suite's data lies around, Unix milliseconds.
var base = time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC).UnixMilli()

// Run runs the suite.
func Run(t *testing.T, open Open) {
	for name, f := range map[string]func(*testing.T, Open){
		"AppendStoresEachKeyOnce":            appendOnce,
		"AppendKeepsGeneratedIDsApart":       generated,
		"AcknowledgedRowsSurviveReopening":   reopen,
		"BehaviorLeavesSelectByMeasure":      behavior,
		"FirstTimeLooksAtTheFirstAlone":      firstTime,
		"SequencesSelectByOrder":             sequences,
		"SetsOfUsersFollowMerges":            sets,
		"BehaviorFiltersAreFalseAcrossTypes": filters,
		"PropertyLeavesSelectByTypeAndValue": properties,
		"MergesMoveBehaviorUsageAndProfiles": merges,
		"ResetAndApplyRebuildTheSame":        rebuild,
		"ExportReturnsWhatWasStored":         export,
		"UsageCountsByVerdict":               usage,
		"UsageOfThePastIgnoresLaterMerges":   usageBefore,
		"UsageBreaksDown":                    breakDown,
		"AUserIsExplainedByTheirEvents":      userUsage,
		"ReclassifyChangesVerdictsOnly":      reclassify,
	} {
		t.Run(name, func(t *testing.T) { f(t, open) })
	}
}

type fixture struct {
	*testing.T
	w   warehouse.Warehouse
	seq uint64
	n   uint64
}

func begin(t *testing.T, open Open) *fixture {
	t.Helper()
	f := &fixture{T: t, w: open(t, t.TempDir())}
	t.Cleanup(func() {
		if err := f.w.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// row is an event of project 1; the hash is unique unless changed.
func (f *fixture) row(user uint64, name string, at int64, props string) warehouse.Row {
	f.n++
	return warehouse.Row{ProjectID: 1, UserNo: user, Name: name, TimeMS: at, ReceivedMS: base, Day: int32(at / day), Hash: f.n * 0x9e3779b97f4a7c15, InsertID: fmt.Appendf(nil, "i%d", f.n), RulesVersion: 1, Flags: warehouse.FlagGuardrail, Props: []byte(props)}
}

func (f *fixture) append(rows ...warehouse.Row) warehouse.Appended {
	f.Helper()
	out, err := f.w.Append(context.Background(), rows)
	if err != nil {
		f.Fatal(err)
	}
	return out
}

func (f *fixture) apply(changes ...ledger.Change) {
	f.Helper()
	for i := range changes {
		f.seq++
		changes[i].Seq = f.seq
		if changes[i].Canonical == 0 {
			changes[i].Canonical = changes[i].UserNo
		}
	}
	f.feed(base, changes)
}

// feed applies numbered changes; those that are merges were made at an instant.
func (f *fixture) feed(at int64, changes []ledger.Change) {
	f.Helper()
	var merges []ledger.Merge
	for _, c := range changes {
		if c.Canonical != c.UserNo {
			merges = append(merges, ledger.Merge{Seq: c.Seq, UserNo: c.UserNo, Canonical: c.Canonical, AtMS: at})
		}
	}
	if err := f.w.Apply(context.Background(), 1, changes, merges, f.seq); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) evaluate(leaves ...leaf.Leaf) *warehouse.Evaluation {
	f.Helper()
	ev, err := f.w.Evaluate(context.Background(), 1, leaves, time.UnixMilli(base))
	if err != nil {
		f.Fatal(err)
	}
	return ev
}

func list(bm *roaring64.Bitmap) string { return strings.Trim(fmt.Sprint(bm.ToArray()), "[]") }

func (f *fixture) want(what string, l leaf.Leaf, users string) {
	f.Helper()
	if err := l.Validate("leaf"); err != nil {
		f.Fatalf("%s: %v", what, err)
	}
	if got := list(f.evaluate(l).Leaves[0].Users); got != users {
		f.Errorf("%s: users %q, want %q", what, got, users)
	}
}

func (f *fixture) exported(names ...string) []warehouse.Exported {
	f.Helper()
	var out []warehouse.Exported
	err := f.w.Export(context.Background(), warehouse.ExportQuery{ProjectID: 1, ToMS: base + 1000*day, Names: names}, func(e warehouse.Exported) error {
		out = append(out, e)
		return nil
	})
	if err != nil {
		f.Fatal(err)
	}
	return out
}

func appendOnce(t *testing.T, open Open) {
	f := begin(t, open)
	a, b, old := f.row(1, "A", base, "{}"), f.row(2, "B", base, "{}"), f.row(3, "Old", base-400*day, "{}")
	out := f.append(a, b, a, old)
	if out.Stored != 3 || out.Duplicates != 1 || !slices.Equal(out.Duplicate, []bool{false, false, true, false}) {
		t.Errorf("first append: %+v", out)
	}
	c := f.row(4, "C", base, "{}")
	if out := f.append(b, c, old); out.Stored != 1 || !slices.Equal(out.Duplicate, []bool{true, false, true}) {
		t.Errorf("second append: %+v", out)
	}
	other := a
	other.ProjectID = 2
	elsewhere := a
	elsewhere.Day--
	if out := f.append(other, elsewhere); out.Duplicates != 0 {
		t.Error("a key counts within its project and day only")
	}
	zero := f.row(5, "Z", base, "{}")
	zero.Hash = 0
	if out := f.append(zero, zero); out.Stored != 1 {
		t.Errorf("hash 0: %+v", out)
	}
	if n, _ := f.w.Events(context.Background(), 1); n != 6 {
		t.Errorf("%d events, want 6", n)
	}
}

func generated(t *testing.T, open Open) {
	f := begin(t, open)
	r := f.row(1, "A", base, "{}")
	r.Flags |= warehouse.FlagGenerated
	if out := f.append(r, r); out.Stored != 2 {
		t.Errorf("%+v", out)
	}
	keyed := r
	keyed.Flags = 0
	if out := f.append(keyed); out.Stored != 1 {
		t.Error("an event without a key of its own made another one a duplicate")
	}
}

func reopen(t *testing.T, open Open) {
	dir := t.TempDir()
	f := &fixture{T: t, w: open(t, dir)}
	r := f.row(1, "A", base, `{"x":1}`)
	f.append(r, f.row(2, "A", base-40*day, "{}"))
	f.apply(ledger.Change{UserNo: 2, Props: []byte(`{"a":"b"}`)}, ledger.Change{UserNo: 1, Canonical: 2})
	if err := f.w.Close(); err != nil {
		t.Fatal(err)
	}
	f.w = open(t, dir)
	defer func() {
		if err := f.w.Close(); err != nil {
			t.Error(err)
		}
	}()
	if out := f.append(r); out.Duplicates != 1 {
		t.Error("a repeated event was stored again")
	}
	ev := f.evaluate(did("A", leaf.Count, leaf.Equal, 2))
	if list(ev.Leaves[0].Users) != "2" || list(ev.Identified) != "2" || ev.Seq != 2 || ev.NewestMS != base {
		t.Errorf("after reopening: %v", ev)
	}
	if seq, _ := f.w.AppliedSeq(context.Background(), 1); seq != 2 {
		t.Errorf("applied sequence %d, want 2", seq)
	}
}

func did(name string, m leaf.Measure, c leaf.Comparator, n float64) leaf.Leaf {
	return leaf.Leaf{Behavior: &leaf.Behavior{Events: []string{name}, Measure: m, Property: "x", Comparator: c, Threshold: n, High: n + 1, Span: leaf.Span{To: base + 1}}}
}

func behavior(t *testing.T, open Open) {
	f := begin(t, open)
	// User 1 has x = 1, 2, 3; user 2 has x = 10 and a text; user 3 no x; user 70 lies
	// in another word of the bitmap; user 0 is nobody.
	for i, x := range []string{"1", "2", "3"} {
		f.append(f.row(1, "E", base-int64(i)*day, `{"x":`+x+`}`))
	}
	f.append(f.row(2, "E", base-day, `{"x":10}`), f.row(2, "E", base-day-1, `{"x":"10"}`), f.row(3, "E", base-5*day, `{}`), f.row(70, "E", base, `{"x":2}`), f.row(0, "E", base, `{"x":2}`))
	f.append(f.row(9, "Other", base, `{"x":2}`), f.row(8, "E", base+1, `{"x":2}`))
	for _, c := range []struct {
		leaf leaf.Leaf
		want string
	}{
		{did("E", leaf.Count, leaf.GreaterOrEqual, 1), "1 2 3 70"},
		{did("E", leaf.Count, leaf.Equal, 2), "2"},
		{did("E", leaf.Count, leaf.NotEqual, 2), "1 3 70"},
		{did("E", leaf.Count, leaf.Less, 2), "3 70"},
		{did("E", leaf.Count, leaf.LessOrEqual, 2), "2 3 70"},
		{did("E", leaf.Count, leaf.Greater, 2), "1"},
		{did("E", leaf.Count, leaf.Between, 2), "1 2"},
		{did("E", leaf.Sum, leaf.Equal, 6), "1"},
		{did("E", leaf.Sum, leaf.GreaterOrEqual, 6), "1 2"},
		{did("E", leaf.Average, leaf.Equal, 2), "1 70"},
		{did("E", leaf.Min, leaf.Equal, 1), "1"},
		{did("E", leaf.Max, leaf.Equal, 10), "2"},
		{did("E", leaf.Distinct, leaf.Equal, 3), "1"},
		{did("E", leaf.Distinct, leaf.Equal, 2), "2"}, // 10 and "10" differ
		{did("E", leaf.Distinct, leaf.Equal, 0), "3"},
		{did("E", leaf.DistinctDays, leaf.Equal, 3), "1"},
		{did("E", leaf.DistinctDays, leaf.Equal, 1), "2 3 70"},
		{did("Nothing", leaf.Count, leaf.GreaterOrEqual, 1), ""},
	} {
		f.want(fmt.Sprintf("measure %d comparator %d threshold %v", c.leaf.Behavior.Measure, c.leaf.Behavior.Comparator, c.leaf.Behavior.Threshold), c.leaf, c.want)
	}
	either := did("E", leaf.Count, leaf.GreaterOrEqual, 1)
	either.Behavior.Events = []string{"Other", "E"}
	either.Behavior.Span = leaf.Span{From: base - day, To: base}
	f.want("window, start inside, end outside", either, "1 2")
}

func text(s string) leaf.Operand    { return leaf.Operand{Type: leaf.String, Text: s} }
func number(x float64) leaf.Operand { return leaf.Operand{Type: leaf.Number, Num: x} }
func truth(b bool) leaf.Operand     { return leaf.Operand{Type: leaf.Bool, Flag: b} }
func instant(s string) leaf.Operand {
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return leaf.Operand{Type: leaf.Datetime, TimeMS: at.UnixMilli()}
}

// values are user by user what property "p" is, and cases what each filter selects.
var values = []string{
	1: `"Berlin"`, 2: `"BERlin Mitte"`, 3: `10`, 4: `10.5`, 5: `true`, 6: `false`, 7: `"2026-03-09T12:00:00"`, 8: `"2026-01-01"`,
	9: `["a",1,true]`, 10: `["a","b"]`, 11: `{"a":1}`, 12: `null`, 13: ``, 14: `"10"`, 15: `"2026-03-10T13:00:00+02:00"`, 16: `"it's /~ \"q\""`,
}

var cases = []struct {
	f    leaf.Filter
	want string
}{
	{leaf.Filter{Type: leaf.String, Op: leaf.IsSet}, "1 2 3 4 5 6 7 8 9 10 11 14 15 16"},
	{leaf.Filter{Type: leaf.String, Op: leaf.IsNotSet}, "12 13"},
	{leaf.Filter{Type: leaf.String, Op: leaf.Equals, Operands: []leaf.Operand{text("Berlin"), text("10")}}, "1 14"},
	{leaf.Filter{Type: leaf.String, Op: leaf.Equals, Operands: []leaf.Operand{text(`it's /~ "q"`)}}, "16"},
	{leaf.Filter{Type: leaf.String, Op: leaf.NotEquals, Operands: []leaf.Operand{text("Berlin"), text("10")}}, "2 7 8 15 16"},
	{leaf.Filter{Type: leaf.String, Op: leaf.Contains, Operands: []leaf.Operand{text("berlin")}}, "1 2"},
	{leaf.Filter{Type: leaf.String, Op: leaf.NotContains, Operands: []leaf.Operand{text("berlin"), text("2026")}}, "14 16"},
	{leaf.Filter{Type: leaf.String, Op: leaf.StartsWith, Operands: []leaf.Operand{text("BER")}}, "2"},
	{leaf.Filter{Type: leaf.String, Op: leaf.EndsWith, Operands: []leaf.Operand{text("Mitte"), text("lin")}}, "1 2"},
	{leaf.Filter{Type: leaf.Number, Op: leaf.Equals, Operands: []leaf.Operand{number(10)}}, "3"},
	{leaf.Filter{Type: leaf.Number, Op: leaf.NotEquals, Operands: []leaf.Operand{number(10)}}, "4"},
	{leaf.Filter{Type: leaf.Number, Op: leaf.GreaterThan, Operands: []leaf.Operand{number(10)}}, "4"},
	{leaf.Filter{Type: leaf.Number, Op: leaf.AtLeast, Operands: []leaf.Operand{number(10)}}, "3 4"},
	{leaf.Filter{Type: leaf.Number, Op: leaf.LessThan, Operands: []leaf.Operand{number(10.5)}}, "3"},
	{leaf.Filter{Type: leaf.Number, Op: leaf.AtMost, Operands: []leaf.Operand{number(10.5)}}, "3 4"},
	{leaf.Filter{Type: leaf.Number, Op: leaf.InRange, Operands: []leaf.Operand{number(10), number(10)}}, "3"},
	{leaf.Filter{Type: leaf.Bool, Op: leaf.Equals, Operands: []leaf.Operand{truth(true)}}, "5"},
	{leaf.Filter{Type: leaf.Bool, Op: leaf.NotEquals, Operands: []leaf.Operand{truth(true)}}, "6"},
	{leaf.Filter{Type: leaf.Datetime, Op: leaf.GreaterThan, Operands: []leaf.Operand{instant("2026-01-01T00:00:00Z")}}, "7 15"},
	{leaf.Filter{Type: leaf.Datetime, Op: leaf.Equals, Operands: []leaf.Operand{instant("2026-03-10T11:00:00Z")}}, "15"},
	{leaf.Filter{Type: leaf.Datetime, Op: leaf.InRange, Operands: []leaf.Operand{instant("2026-01-01T00:00:00Z"), instant("2026-03-09T12:00:00Z")}}, "7 8"},
	{leaf.Filter{Type: leaf.Datetime, Op: leaf.WithinLast, Within: 2 * time.Hour}, "15"},
	{leaf.Filter{Type: leaf.Datetime, Op: leaf.WithinLast, Within: 24 * time.Hour}, "7 15"},
	{leaf.Filter{Type: leaf.List, Op: leaf.AnyOf, Operands: []leaf.Operand{text("b"), number(1)}}, "9 10"},
	{leaf.Filter{Type: leaf.List, Op: leaf.AllOf, Operands: []leaf.Operand{text("a"), number(1), text("a")}}, "9"},
	{leaf.Filter{Type: leaf.List, Op: leaf.AllOf, Operands: []leaf.Operand{text("a"), truth(true)}}, "9"},
	{leaf.Filter{Type: leaf.List, Op: leaf.AnyOf, Operands: []leaf.Operand{text("1")}}, ""},
}

// awkward is a property name that needs care in every query language.
const awkward = `p'/~1 "x`

func object(value string) string {
	if value == "" {
		return `{"q":0}`
	}
	return `{"q":0,"p'/~1 \"x":` + value + `}`
}

func filters(t *testing.T, open Open) {
	f := begin(t, open)
	for user, v := range values {
		if user > 0 {
			f.append(f.row(uint64(user), "E", base-1, object(v)))
		}
	}
	for _, c := range cases {
		c.f.Property = awkward
		l := did("E", leaf.Count, leaf.GreaterOrEqual, 1)
		l.Behavior.Filters = []leaf.Filter{c.f, {Property: "q", Type: leaf.Number, Op: leaf.Equals, Operands: []leaf.Operand{number(0)}}}
		f.want(fmt.Sprintf("type %d op %d %v", c.f.Type, c.f.Op, c.f.Operands), l, c.want)
	}
}

func properties(t *testing.T, open Open) {
	f := begin(t, open)
	// First other values, so that Apply must replace them.
	for user := range values {
		if user > 0 {
			f.apply(ledger.Change{UserNo: uint64(user), Props: []byte(object(`"Berlin"`))})
		}
	}
	var changes []ledger.Change
	for user, v := range values {
		if user > 0 {
			changes = append(changes, ledger.Change{UserNo: uint64(user), Props: []byte(object(v))})
		}
	}
	f.apply(changes...)
	if err := f.w.Sort(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		c.f.Property = awkward
		f.want(fmt.Sprintf("type %d op %d %v", c.f.Type, c.f.Op, c.f.Operands), leaf.Leaf{Property: &c.f}, c.want)
	}
	if got := list(f.evaluate().Identified); got != "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16" {
		t.Errorf("identified %q", got)
	}
	f.apply(ledger.Change{UserNo: 3}, ledger.Change{UserNo: 4, Props: []byte(`{}`)})
	if got := list(f.evaluate().Identified); got != "1 2 5 6 7 8 9 10 11 12 13 14 15 16" {
		t.Errorf("identified after a deletion %q", got)
	}
}

func merges(t *testing.T, open Open) {
	f := begin(t, open)
	f.append(f.row(1, "E", base, "{}"), f.row(2, "E", base, "{}"), f.row(3, "E", base, "{}"), f.row(4, "E", base, "{}"))
	f.apply(ledger.Change{UserNo: 1, Props: []byte(`{"a":1}`)}, ledger.Change{UserNo: 2, Props: []byte(`{"a":1}`)}, ledger.Change{UserNo: 3, Canonical: 2})
	f.want("one merge", did("E", leaf.Count, leaf.Equal, 2), "2")
	// 2 and with it 3 become 1.
	f.apply(ledger.Change{UserNo: 3, Canonical: 1}, ledger.Change{UserNo: 2, Canonical: 1})
	f.want("a chain of merges", did("E", leaf.Count, leaf.Equal, 3), "1")
	ev := f.evaluate(leaf.Leaf{Property: &leaf.Filter{Property: "a", Type: leaf.Number, Op: leaf.IsSet}})
	if list(ev.Identified) != "1" || list(ev.Leaves[0].Users) != "1" {
		t.Errorf("identified %q, property %q, want 1", list(ev.Identified), list(ev.Leaves[0].Users))
	}
	u, err := f.w.Usage(context.Background(), warehouse.UsageQuery{ProjectID: 1, FromMS: base, ToMS: base + 1})
	if err != nil || u.Users != 2 {
		t.Errorf("usage %+v, %v, want 2 users", u, err)
	}
}

func rebuild(t *testing.T, open Open) {
	f := begin(t, open)
	f.append(f.row(3, "E", base, "{}"))
	all := []ledger.Change{{UserNo: 1, Props: []byte(`{"a":1}`)}, {UserNo: 2, Props: []byte(`{"a":2}`)}, {UserNo: 3, Canonical: 1}}
	f.apply(slices.Clone(all)...)
	if err := f.w.Reset(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	ev := f.evaluate(did("E", leaf.Count, leaf.GreaterOrEqual, 1))
	if seq, _ := f.w.AppliedSeq(context.Background(), 1); seq != 0 || ev.Seq != 0 || list(ev.Identified) != "" || list(ev.Leaves[0].Users) != "3" {
		t.Errorf("after a reset: sequence %d, %v", seq, ev)
	}
	f.apply(all...)
	if err := f.w.Sort(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	ev = f.evaluate(did("E", leaf.Count, leaf.GreaterOrEqual, 1))
	if list(ev.Identified) != "1 2" || list(ev.Leaves[0].Users) != "1" {
		t.Errorf("after feeding again: identified %q, did %q", list(ev.Identified), list(ev.Leaves[0].Users))
	}
}

func export(t *testing.T, open Open) {
	f := begin(t, open)
	r := f.row(7, "A", base-1, `{"k":"ü"}`)
	r.Rule, r.Flags = "general", warehouse.FlagImport
	f.append(r, f.row(1, "B", base, `{}`), f.row(2, "B", base-3*day, `{}`))
	got := f.exported("A")
	if len(got) != 1 || got[0].UserNo != 7 || got[0].TimeMS != base-1 || got[0].ReceivedMS != base || got[0].InsertID != "i1" || got[0].Rule != "general" || got[0].Flags != warehouse.FlagImport || string(got[0].Props) != `{"k":"ü"}` {
		t.Errorf("exported %+v", got)
	}
	if n := len(f.exported()); n != 3 {
		t.Errorf("%d events without names, want 3", n)
	}
	n := 0
	err := f.w.Export(context.Background(), warehouse.ExportQuery{ProjectID: 1, FromMS: base - 1, ToMS: base}, func(warehouse.Exported) error { n++; return nil })
	if err != nil || n != 1 {
		t.Errorf("%d events in [from, to), want 1; %v", n, err)
	}
	stop := errors.New("stop")
	if err := f.w.Export(context.Background(), warehouse.ExportQuery{ProjectID: 1, ToMS: base + day}, func(warehouse.Exported) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a failing callback gave %v", err)
	}
}
