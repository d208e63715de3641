package server

import (
	"strconv"
	"time"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/leaf"
)

// leafOf reads a leaf; windows end at asOf.
func leafOf(l *ingestionv1.Leaf, asOf time.Time, path string) (out leaf.Leaf, err error) {
	switch {
	case l.GetBehavior() != nil:
		out.Behavior, err = behaviorOf(l.GetBehavior(), asOf, path+".behavior")
	case l.GetProperty() != nil:
		out.Property, err = filterOf(l.GetProperty().GetFilter(), path+".property.filter")
	case l.GetSequence() != nil:
		out.Sequence, err = sequenceOf(l.GetSequence(), asOf, path+".sequence")
	case l.GetUsers() != nil:
		out.Users, err = readUsers(path+".users.roaring", l.GetUsers().GetRoaring())
	}
	if err != nil {
		return out, err
	}
	return out, out.Validate(path)
}

func behaviorOf(b *typev1.BehaviorLeaf, asOf time.Time, path string) (*leaf.Behavior, error) {
	out := &leaf.Behavior{
		Events: b.GetEvents(), Measure: leaf.Measure(b.GetMeasure()), Property: b.GetMeasureProperty(), //nolint:gosec // enums with the same numbers
		Comparator: leaf.Comparator(b.GetComparator()), Threshold: 1, High: b.GetThresholdHigh(), FirstTime: b.GetFirstTime(), //nolint:gosec // enums with the same numbers
	}
	if b.Threshold != nil {
		out.Threshold = b.GetThreshold()
	}
	if out.Measure == 0 {
		out.Measure = leaf.Count
	}
	if out.Comparator == 0 {
		out.Comparator = leaf.GreaterOrEqual
	}
	var err error
	if out.Filters, err = filtersOf(b.GetFilters(), path); err != nil {
		return nil, err
	}
	out.Span, err = spanOf(b.GetWindow(), asOf, path+".window")
	return out, err
}

func filtersOf(list []*typev1.PropertyFilter, path string) ([]leaf.Filter, error) {
	var out []leaf.Filter
	for i, f := range list {
		x, err := filterOf(f, path+".filters["+strconv.Itoa(i)+"]")
		if err != nil {
			return nil, err
		}
		out = append(out, *x)
	}
	return out, nil
}

func sequenceOf(s *typev1.SequenceLeaf, asOf time.Time, path string) (_ *leaf.Sequence, err error) {
	out := &leaf.Sequence{Within: s.GetWithin().AsDuration(), AsOfMS: asOf.UnixMilli()}
	if out.Span, err = spanOf(s.GetWindow(), asOf, path+".window"); err != nil {
		return nil, err
	}
	for i, step := range s.GetSteps() {
		x := leaf.Step{Events: step.GetEvents(), DidNot: step.GetDidNot()}
		if x.Filters, err = filtersOf(step.GetFilters(), path+".steps["+strconv.Itoa(i)+"]"); err != nil {
			return nil, err
		}
		out.Steps = append(out.Steps, x)
	}
	return out, nil
}

func spanOf(w *typev1.Window, asOf time.Time, path string) (leaf.Span, error) {
	// as_of itself belongs to the window.
	s := leaf.Span{To: asOf.UnixMilli() + 1}
	switch {
	case w.GetLast() != nil:
		from, ok := since(asOf, int(w.GetLast().GetAmount()), w.GetLast().GetUnit())
		if !ok {
			return s, fault.Field(path+".last", "needs a unit and an amount of at least 1")
		}
		s.From = from.UnixMilli()
	case w.GetBetween() != nil:
		s.From = w.GetBetween().GetStart().AsTime().UnixMilli()
		end := w.GetBetween().GetEnd().AsTime().UnixMilli()
		if end <= s.From {
			return s, fault.Field(path+".between", "end must be after start")
		}
		if s.From >= s.To {
			return leaf.Span{From: s.To, To: s.To}, nil // all of it is yet to come: nobody did
		}
		s.To = min(s.To, end)
	case w.GetSince() != nil:
		s.From = min(w.GetSince().AsTime().UnixMilli(), s.To)
	}
	return s, nil
}

func since(asOf time.Time, n int, unit typev1.RelativeWindow_Unit) (time.Time, bool) {
	if n < 1 {
		return asOf, false
	}
	switch unit {
	case typev1.RelativeWindow_UNIT_MINUTE:
		return asOf.Add(-time.Duration(n) * time.Minute), true
	case typev1.RelativeWindow_UNIT_HOUR:
		return asOf.Add(-time.Duration(n) * time.Hour), true
	case typev1.RelativeWindow_UNIT_DAY:
		return asOf.UTC().AddDate(0, 0, -n), true
	case typev1.RelativeWindow_UNIT_WEEK:
		return asOf.UTC().AddDate(0, 0, -7*n), true
	case typev1.RelativeWindow_UNIT_MONTH:
		return monthsBack(asOf.UTC(), n), true
	default:
		return asOf, false
	}
}

// monthsBack is the same day and time n months earlier, or the last day of that
// month when it is shorter (a month before 31 March is 28 or 29 February).
func monthsBack(t time.Time, n int) time.Time {
	first := time.Date(t.Year(), t.Month()-time.Month(n), 1, t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
	last := first.AddDate(0, 1, -1).Day()
	return first.AddDate(0, 0, min(t.Day(), last)-1)
}

var operators = map[typev1.PropertyOperator]leaf.Operator{
	typev1.PropertyOperator_PROPERTY_OPERATOR_IS_SET:           leaf.IsSet,
	typev1.PropertyOperator_PROPERTY_OPERATOR_IS_NOT_SET:       leaf.IsNotSet,
	typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS:           leaf.Equals,
	typev1.PropertyOperator_PROPERTY_OPERATOR_NOT_EQUALS:       leaf.NotEquals,
	typev1.PropertyOperator_PROPERTY_OPERATOR_CONTAINS:         leaf.Contains,
	typev1.PropertyOperator_PROPERTY_OPERATOR_NOT_CONTAINS:     leaf.NotContains,
	typev1.PropertyOperator_PROPERTY_OPERATOR_STARTS_WITH:      leaf.StartsWith,
	typev1.PropertyOperator_PROPERTY_OPERATOR_ENDS_WITH:        leaf.EndsWith,
	typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER:          leaf.GreaterThan,
	typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER_OR_EQUAL: leaf.AtLeast,
	typev1.PropertyOperator_PROPERTY_OPERATOR_LESS:             leaf.LessThan,
	typev1.PropertyOperator_PROPERTY_OPERATOR_LESS_OR_EQUAL:    leaf.AtMost,
	typev1.PropertyOperator_PROPERTY_OPERATOR_BETWEEN:          leaf.InRange,
	typev1.PropertyOperator_PROPERTY_OPERATOR_WITHIN_LAST:      leaf.WithinLast,
	typev1.PropertyOperator_PROPERTY_OPERATOR_ANY_OF:           leaf.AnyOf,
	typev1.PropertyOperator_PROPERTY_OPERATOR_ALL_OF:           leaf.AllOf,
}

func filterOf(f *typev1.PropertyFilter, path string) (*leaf.Filter, error) {
	if f == nil {
		return nil, fault.Field(path, "required")
	}
	op, ok := operators[f.GetOperator()]
	if !ok {
		return nil, fault.Field(path+".operator", "unknown operator")
	}
	out := &leaf.Filter{Property: f.GetProperty(), Type: leaf.Type(f.GetType()), Op: op, Within: f.GetWithin().AsDuration()} //nolint:gosec // an enum with the same numbers
	for i, v := range f.GetOperands() {
		var o leaf.Operand
		switch v := v.GetValue().(type) {
		case *typev1.PropertyValue_StringValue:
			o = leaf.Operand{Type: leaf.String, Text: v.StringValue}
		case *typev1.PropertyValue_NumberValue:
			o = leaf.Operand{Type: leaf.Number, Num: v.NumberValue}
		case *typev1.PropertyValue_BoolValue:
			o = leaf.Operand{Type: leaf.Bool, Flag: v.BoolValue}
		case *typev1.PropertyValue_TimeValue:
			o = leaf.Operand{Type: leaf.Datetime, TimeMS: v.TimeValue.AsTime().UnixMilli()}
		default:
			return nil, fault.Field(path+".operands["+strconv.Itoa(i)+"]", "required")
		}
		out.Operands = append(out.Operands, o)
	}
	return out, nil
}
