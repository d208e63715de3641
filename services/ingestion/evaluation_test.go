package ingestion_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/services/ingestion/benchkit"
)

const (
	typeString = typev1.ValueType_VALUE_TYPE_STRING
	typeNumber = typev1.ValueType_VALUE_TYPE_NUMBER
	opIsSet    = typev1.PropertyOperator_PROPERTY_OPERATOR_IS_SET
	opEquals   = typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS
)

func filter(name string, vt typev1.ValueType, op typev1.PropertyOperator, operands ...any) *typev1.PropertyFilter {
	f := &typev1.PropertyFilter{Property: name, Type: vt, Operator: op}
	for _, o := range operands {
		v := &typev1.PropertyValue{}
		switch o := o.(type) {
		case string:
			v.Value = &typev1.PropertyValue_StringValue{StringValue: o}
		case int:
			v.Value = &typev1.PropertyValue_NumberValue{NumberValue: float64(o)}
		case bool:
			v.Value = &typev1.PropertyValue_BoolValue{BoolValue: o}
		case time.Time:
			v.Value = &typev1.PropertyValue_TimeValue{TimeValue: timestamppb.New(o)}
		}
		f.Operands = append(f.Operands, v)
	}
	return f
}

func property(name string, vt typev1.ValueType, op typev1.PropertyOperator, operands ...any) *ingestionv1.Leaf {
	return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Property{Property: &typev1.PropertyLeaf{Filter: filter(name, vt, op, operands...)}}}
}

func within(w *typev1.Window) *ingestionv1.Leaf {
	l := did(1, "E")
	l.GetBehavior().Window = w
	return l
}

func last(n int32, u typev1.RelativeWindow_Unit) *ingestionv1.Leaf {
	return within(&typev1.Window{Span: &typev1.Window_Last{Last: &typev1.RelativeWindow{Amount: n, Unit: u}}})
}

func TestWindowsEndAtTheInstantOfTheEvaluation(t *testing.T) {
	h := newHarness(t) // 2026-03-31 12:00
	at := map[string]time.Duration{"u1": 0, "u2": -59 * time.Second, "u3": -61 * time.Second, "u4": -3 * time.Hour, "u5": -25 * time.Hour, "u6": -8 * 24 * time.Hour, "u7": -31 * 24 * time.Hour, "u8": -32 * 24 * time.Hour}
	for i := 1; i <= 8; i++ {
		id := fmt.Sprint("u", i)
		h.importStrict(1, ev("E", start.Add(at[id]), id, "w-"+id, nil))
	}
	march := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		leaf *ingestionv1.Leaf
		want string
	}{
		{last(1, typev1.RelativeWindow_UNIT_MINUTE), "u1 u2"},
		{last(1, typev1.RelativeWindow_UNIT_HOUR), "u1 u2 u3"},
		{last(1, typev1.RelativeWindow_UNIT_DAY), "u1 u2 u3 u4"},
		{last(1, typev1.RelativeWindow_UNIT_WEEK), "u1 u2 u3 u4 u5"},
		{last(1, typev1.RelativeWindow_UNIT_MONTH), "u1 u2 u3 u4 u5 u6 u7"}, // 28 February 12:00
		{last(31, typev1.RelativeWindow_UNIT_DAY), "u1 u2 u3 u4 u5 u6 u7"},
		{last(100_000, typev1.RelativeWindow_UNIT_WEEK), "u1 u2 u3 u4 u5 u6 u7 u8"},
		{within(nil), "u1 u2 u3 u4 u5 u6 u7 u8"},
		{within(&typev1.Window{Span: &typev1.Window_AllTime{AllTime: true}}), "u1 u2 u3 u4 u5 u6 u7 u8"},
		{within(&typev1.Window{Span: &typev1.Window_Since{Since: timestamppb.New(march)}}), "u1 u2 u3 u4 u5 u6"},
		{within(&typev1.Window{Span: &typev1.Window_Between{Between: &typev1.BetweenWindow{Start: timestamppb.New(march), End: timestamppb.New(start.Add(-25 * time.Hour))}}}), "u6"},
		{within(&typev1.Window{Span: &typev1.Window_Between{Between: &typev1.BetweenWindow{Start: timestamppb.New(start.Add(time.Hour)), End: timestamppb.New(start.Add(2 * time.Hour))}}}), ""},
	} {
		e := h.evaluate(1, c.leaf)
		if got := h.ids(1, e.leaves[0]); got != c.want {
			t.Errorf("window %v: %q, want %q", c.leaf.GetBehavior().GetWindow(), got, c.want)
		}
		if !e.mark.GetEventTime().AsTime().Equal(start) {
			t.Errorf("event watermark %v", e.mark.GetEventTime().AsTime())
		}
	}
}

func TestUnusableLeavesAreRefusedNamingThePath(t *testing.T) {
	h := newHarness(t)
	handlers := benchkit.HandlersOf(h.svc)
	behavior := func(f func(*typev1.BehaviorLeaf)) *ingestionv1.Leaf {
		l := did(1, "E")
		f(l.GetBehavior())
		return l
	}
	for path, l := range map[string]*ingestionv1.Leaf{
		"leaves[1]":                             {},
		"leaves[1].behavior.events":             behavior(func(b *typev1.BehaviorLeaf) { b.Events = nil }),
		"leaves[1].behavior.measure_property":   behavior(func(b *typev1.BehaviorLeaf) { b.Measure = typev1.Measure_MEASURE_SUM }),
		"leaves[1].behavior.measure":            behavior(func(b *typev1.BehaviorLeaf) { b.Measure = 99 }),
		"leaves[1].behavior.comparator":         behavior(func(b *typev1.BehaviorLeaf) { b.Comparator = 99 }),
		"leaves[1].behavior.threshold_high":     behavior(func(b *typev1.BehaviorLeaf) { b.Comparator = typev1.Comparator_COMPARATOR_BETWEEN }),
		"leaves[1].behavior.window.last":        last(1, 0),
		"leaves[1].behavior.window.between":     within(&typev1.Window{Span: &typev1.Window_Between{Between: &typev1.BetweenWindow{Start: timestamppb.New(start), End: timestamppb.New(start)}}}),
		"leaves[1].behavior.filters[0].type":    behavior(func(b *typev1.BehaviorLeaf) { b.Filters = []*typev1.PropertyFilter{filter("x", 77, opEquals, 1)} }),
		"leaves[1].property.filter.operator":    property("x", typeString, typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER, "a"),
		"leaves[1].property.filter.operands":    property("x", typeString, opEquals),
		"leaves[1].property.filter.operands[0]": property("x", typeString, opEquals, 1),
		"leaves[1].property.filter.property":    property("", typeString, opIsSet),
		"leaves[1].property.filter.within":      property("x", typev1.ValueType_VALUE_TYPE_DATETIME, typev1.PropertyOperator_PROPERTY_OPERATOR_WITHIN_LAST),
	} {
		err := handlers.Evaluation.EvaluateLeaves(&ingestionv1.EvaluateLeavesRequest{Parent: "projects/1", AsOf: timestamppb.New(start), Leaves: []*ingestionv1.Leaf{did(1, "E"), l}}, &nullStream{ctx: context.Background()})
		if f := violation(err); f != path {
			t.Errorf("%s: error %v names %q", path, err, f)
		}
	}
}

func TestMembersCarryTheirColumnsAsTheyAreStored(t *testing.T) {
	h := newHarness(t)
	h.engage(1, set("a", props{"$email": "a@example.org", "n": 12.50, "l": []any{1, "x"}}), set("b", props{"other": 1}))
	h.importStrict(1, ev("E", start, "anonymous-user", "m1", nil))
	got := h.members(1, h.evaluate(1, did(1, "E")).leaves[0], "n")
	if len(got) != 1 || got[0].GetIdentified() || len(got[0].GetColumns()[0]) != 0 {
		t.Errorf("an anonymous member: %v", got)
	}
	got = h.members(1, h.evaluate(1).identified, "l", "$email", "n")
	if len(got) != 2 || string(got[0].GetColumns()[0]) != `[1,"x"]` || string(got[0].GetColumns()[1]) != `"a@example.org"` || string(got[0].GetColumns()[2]) != `12.5` || !got[0].GetIdentified() {
		t.Errorf("members %v", got)
	}
	if c := got[1].GetColumns(); len(c) != 3 || len(c[0])+len(c[1])+len(c[2]) != 0 {
		t.Errorf("absent columns %v", c)
	}
}

func TestUsageCountsCanonicalUsersWithQualifyingEventsOfTheMonth(t *testing.T) {
	h := newHarness(t)
	ct := props{"$source": "CleverTap"}
	h.importStrict(1,
		ev("App Launched", start, "", "m1", props{"$device_id": "D"}), ev("App Launched", start, "U", "m2", nil),
		ev("Notification Sent", start, "sleeper", "m3", ct), ev("Notification Sent", start, "U", "m4", ct),
		ev("Notification Sent", start, "own", "m5", nil), // no marker: the customer's own event
		ev("Canvas Entry", start, "braze", "m6", props{"$partner_id": "braze"}), ev("$identify", start, "x", "m7", nil),
		ev("App Launched", start.AddDate(0, -2, 0), "old", "m8", nil), // counts in the month of its processing
	)
	usage := func(month string) *ingestionv1.GetUsageResponse {
		r, err := h.use.GetUsage(context.Background(), &ingestionv1.GetUsageRequest{Parent: "projects/1", Month: month})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	u := usage("")
	if u.GetMonth() != "2026-03" || u.GetMtu() != 4 || u.GetUsers() != 4 || u.GetQualifyingEvents() != 4 || u.GetExemptEvents() != 4 || u.GetExemptOnlyUsers() != 3 || u.GetGuardrail() {
		t.Errorf("usage %v", u)
	}
	if r := u.GetExemptByRule(); r["clevertap"] != 2 || r["braze"] != 1 || r["general"] != 1 || u.GetEventsBySource()["CleverTap"] != 2 {
		t.Errorf("usage %v", u)
	}
	// The device turns out to be U.
	h.importStrict(1, ev("App Launched", start, "", "m9", props{"$device_id": "D", "$user_id": "U"}))
	if u := usage("2026-03"); u.GetMtu() != 3 {
		t.Errorf("after the merge: %v", u)
	}
	if u := usage("2026-01"); u.GetMtu() != 0 {
		t.Errorf("January: %v", u)
	}
	// By name alone, and by event time.
	h.reg.projects[1].MTU.ByEventTime = true
	if u := usage("2026-01"); u.GetMtu() != 1 {
		t.Errorf("January by event time: %v", u)
	}
	h.reg.projects[1].MTU.NameOnly = true
	h.importStrict(1, ev("Notification Sent", start, "own2", "m10", nil))
	if u := usage("2026-03"); u.GetExemptByRule()["clevertap"] != 3 {
		t.Errorf("by name alone: %v", u)
	}
	for _, e := range h.export(1) {
		want := map[string]string{"m3": "exempt:clevertap", "m5": "qualifying", "m6": "exempt:braze", "m7": "exempt:general"}[e.GetInsertId()]
		if want != "" && e.GetMtuVerdict() != want {
			t.Errorf("%s has verdict %s, want %s", e.GetInsertId(), e.GetMtuVerdict(), want)
		}
	}
}

func TestTheGuardrailTakesOverAbove1000EventsPerUser(t *testing.T) {
	h := newHarness(t)
	for b := range 2 {
		var list []props
		for i := range 1001 {
			list = append(list, ev("E", start, "u", fmt.Sprintf("g%d-%d", b, i), nil))
		}
		h.importStrict(1, list...)
	}
	r, err := h.use.GetUsage(context.Background(), &ingestionv1.GetUsageRequest{Parent: "projects/1"})
	if err != nil || r.GetMtu() != 3 || r.GetUsers() != 1 || !r.GetGuardrail() {
		t.Errorf("2002 events of one user: %v, %v", r, err)
	}
}

func TestTheRuleListIsMixpanels(t *testing.T) {
	h := newHarness(t)
	r, err := h.use.ListMtuRules(context.Background(), &ingestionv1.ListMtuRulesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"general": 21, "airship": 10, "braze": 15, "clevertap": 20, "iterable": 17, "leanplum": 9, "mailchimp": 5, "moengage": 17, "onesignal": 4, "xtremepush": 7}
	if len(r.GetRules()) != len(want) {
		t.Errorf("%d rules, want %d", len(r.GetRules()), len(want))
	}
	for _, rule := range r.GetRules() {
		if len(rule.GetEvents()) != want[rule.GetId()] || !strings.HasPrefix(rule.GetSource(), "https://docs.mixpanel.com/") || (rule.GetMarkerProperty() == "") != (rule.GetId() == "general") {
			t.Errorf("rule %s has %d events, want %d", rule.GetId(), len(rule.GetEvents()), want[rule.GetId()])
		}
	}
}
