package cohort

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// Render is a definition in plain English, e.g. "did Order Ride ≥ 3 times in
// the last 7 days and City is SF". It is the one place that words a
// definition; it expects a valid one. name is what people call a cohort, by its
// resource name; it may be nil.
func Render(e *typev1.Expression, name func(cohort string) string) string {
	if name == nil {
		name = func(cohort string) string { return "cohort " + cohort[strings.LastIndexByte(cohort, '/')+1:] }
	}
	return wording{name}.render(e, false)
}

type wording struct{ name func(string) string }

func (w wording) render(e *typev1.Expression, nested bool) string {
	switch n := e.GetNode().(type) {
	case *typev1.Expression_AllOf:
		return w.join(n.AllOf, " and ", nested)
	case *typev1.Expression_AnyOf:
		return w.join(n.AnyOf, " or ", nested)
	case *typev1.Expression_Not:
		if b := n.Not.GetBehavior(); b != nil && plainDid(b) {
			return "did not do " + strings.Join(b.GetEvents(), " or ") + filters(b.GetFilters()) + window(b.GetWindow())
		}
		if l := n.Not.GetInCohort(); l != nil {
			return "not in " + w.cohorts(l)
		}
		return "not (" + w.render(n.Not, false) + ")"
	case *typev1.Expression_Behavior:
		return RenderBehavior(n.Behavior)
	case *typev1.Expression_Property:
		return filter(n.Property.GetFilter())
	case *typev1.Expression_Sequence:
		return sequence(n.Sequence)
	case *typev1.Expression_InCohort:
		return "in " + w.cohorts(n.InCohort)
	case *typev1.Expression_Ids:
		return ids(n.Ids)
	case *typev1.Expression_External:
		return "kept by a webhook"
	}
	return "nothing"
}

func (w wording) cohorts(l *typev1.CohortLeaf) string {
	names := make([]string, len(l.GetCohorts()))
	for i, c := range l.GetCohorts() {
		names[i] = w.name(c)
	}
	return strings.Join(names, " or ")
}

// ids does not repeat the ids: they are people's.
func ids(l *typev1.IdsLeaf) string {
	switch n := len(l.GetDistinctIds()); n {
	case 0:
		return "of the uploaded ids"
	case 1:
		return "of a list of 1 id"
	default:
		return fmt.Sprintf("of a list of %d ids", n)
	}
}

func sequence(s *typev1.SequenceLeaf) string {
	var out strings.Builder
	for i, step := range s.GetSteps() {
		switch {
		case i == 0:
			out.WriteString("did ")
		case step.GetDidNot():
			out.WriteString(" then did not do ")
		default:
			out.WriteString(" then ")
		}
		out.WriteString(strings.Join(step.GetEvents(), " or ") + filters(step.GetFilters()))
		if i == 0 {
			out.WriteString(window(s.GetWindow()))
		}
	}
	if s.GetWithin() != nil {
		out.WriteString(" within " + spanOf(s.GetWithin().AsDuration()))
	}
	return out.String()
}

// spanOf is a duration after "within", where "1 hour" reads better than "hour".
func spanOf(d time.Duration) string {
	s := span(d)
	if !strings.ContainsAny(s, "0123456789") {
		return "1 " + s
	}
	return s
}

func (w wording) join(l *typev1.ExpressionList, word string, nested bool) string {
	parts := make([]string, 0, len(l.GetOperands()))
	for _, o := range l.GetOperands() {
		parts = append(parts, w.render(o, true))
	}
	s := strings.Join(parts, word)
	if nested && len(parts) > 1 {
		return "(" + s + ")"
	}
	return s
}

// plainDid reports whether the leaf says "did it at all".
func plainDid(b *typev1.BehaviorLeaf) bool {
	if b.GetFirstTime() {
		return false
	}
	m, c := b.GetMeasure(), b.GetComparator()
	return (m == 0 || m == typev1.Measure_MEASURE_COUNT) && (c == 0 || c == typev1.Comparator_COMPARATOR_GREATER_OR_EQUAL) && threshold(b) == 1
}

func threshold(b *typev1.BehaviorLeaf) float64 {
	if b.Threshold == nil { //nolint:protogetter // presence matters
		return 1
	}
	return b.GetThreshold()
}

var comparatorSigns = map[typev1.Comparator]string{
	typev1.Comparator_COMPARATOR_UNSPECIFIED: "≥", typev1.Comparator_COMPARATOR_EQUAL: "=", typev1.Comparator_COMPARATOR_NOT_EQUAL: "≠",
	typev1.Comparator_COMPARATOR_GREATER: ">", typev1.Comparator_COMPARATOR_GREATER_OR_EQUAL: "≥",
	typev1.Comparator_COMPARATOR_LESS: "<", typev1.Comparator_COMPARATOR_LESS_OR_EQUAL: "≤",
}

// RenderBehavior is one behaviour leaf in plain English.
func RenderBehavior(b *typev1.BehaviorLeaf) string {
	var s strings.Builder
	s.WriteString("did " + strings.Join(b.GetEvents(), " or "))
	if b.GetFirstTime() {
		s.WriteString(" for the first time" + filters(b.GetFilters()) + window(b.GetWindow()))
		return s.String()
	}
	s.WriteString(filters(b.GetFilters()))
	amount := comparatorSigns[b.GetComparator()] + " " + number(threshold(b))
	if b.GetComparator() == typev1.Comparator_COMPARATOR_BETWEEN {
		amount = "between " + number(b.GetThreshold()) + " and " + number(b.GetThresholdHigh())
	}
	switch b.GetMeasure() {
	case typev1.Measure_MEASURE_UNSPECIFIED, typev1.Measure_MEASURE_COUNT:
		if !plainDid(b) {
			times := " times"
			if threshold(b) == 1 && b.GetComparator() != typev1.Comparator_COMPARATOR_BETWEEN {
				times = " time"
			}
			s.WriteString(" " + amount + times)
		}
	case typev1.Measure_MEASURE_DISTINCT_DAYS:
		s.WriteString(" on " + amount + " days")
	case typev1.Measure_MEASURE_DISTINCT:
		s.WriteString(" with " + amount + " different " + b.GetMeasureProperty())
	default:
		s.WriteString(" with " + strings.ToLower(short(b.GetMeasure().String())) + " of " + b.GetMeasureProperty() + " " + amount)
	}
	s.WriteString(window(b.GetWindow()))
	return s.String()
}

// RenderLeaf is one leaf in plain English.
func RenderLeaf(l Leaf) string {
	switch {
	case l.Behavior != nil:
		return RenderBehavior(l.Behavior)
	case l.Sequence != nil:
		return sequence(l.Sequence)
	case l.IDs != nil:
		return ids(l.IDs)
	case l.Users != nil:
		return l.Kind
	}
	return filter(l.Property.GetFilter())
}

func filters(fs []*typev1.PropertyFilter) string {
	if len(fs) == 0 {
		return ""
	}
	parts := make([]string, 0, len(fs))
	for _, f := range fs {
		parts = append(parts, filter(f))
	}
	return " where " + strings.Join(parts, " and ")
}

func window(w *typev1.Window) string {
	switch s := w.GetSpan().(type) {
	case *typev1.Window_Last:
		unit := strings.ToLower(short(s.Last.GetUnit().String()))
		if s.Last.GetAmount() == 1 {
			return " in the last " + unit
		}
		return fmt.Sprintf(" in the last %d %ss", s.Last.GetAmount(), unit)
	case *typev1.Window_Between:
		return " between " + instant(s.Between.GetStart().AsTime()) + " and " + instant(s.Between.GetEnd().AsTime())
	case *typev1.Window_Since:
		return " since " + instant(s.Since.AsTime())
	}
	return ""
}

func instant(t time.Time) string {
	if t.Equal(t.Truncate(24 * time.Hour)) {
		return t.Format("2006-01-02")
	}
	return t.Format("2006-01-02 15:04:05 UTC")
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

var operatorWords = map[typev1.PropertyOperator]string{
	typev1.PropertyOperator_PROPERTY_OPERATOR_IS_SET:           "is set",
	typev1.PropertyOperator_PROPERTY_OPERATOR_IS_NOT_SET:       "is not set",
	typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS:           "is",
	typev1.PropertyOperator_PROPERTY_OPERATOR_NOT_EQUALS:       "is not",
	typev1.PropertyOperator_PROPERTY_OPERATOR_CONTAINS:         "contains",
	typev1.PropertyOperator_PROPERTY_OPERATOR_NOT_CONTAINS:     "does not contain",
	typev1.PropertyOperator_PROPERTY_OPERATOR_STARTS_WITH:      "starts with",
	typev1.PropertyOperator_PROPERTY_OPERATOR_ENDS_WITH:        "ends with",
	typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER:          ">",
	typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER_OR_EQUAL: "≥",
	typev1.PropertyOperator_PROPERTY_OPERATOR_LESS:             "<",
	typev1.PropertyOperator_PROPERTY_OPERATOR_LESS_OR_EQUAL:    "≤",
	typev1.PropertyOperator_PROPERTY_OPERATOR_BETWEEN:          "is between",
	typev1.PropertyOperator_PROPERTY_OPERATOR_WITHIN_LAST:      "is within the last",
	typev1.PropertyOperator_PROPERTY_OPERATOR_ANY_OF:           "has any of",
	typev1.PropertyOperator_PROPERTY_OPERATOR_ALL_OF:           "has all of",
}

// maxShownOperands keeps a definition with a thousand operands readable.
const maxShownOperands = 5

func filter(f *typev1.PropertyFilter) string {
	s := f.GetProperty() + " " + operatorWords[f.GetOperator()]
	if f.GetOperator() == typev1.PropertyOperator_PROPERTY_OPERATOR_WITHIN_LAST {
		return s + " " + span(f.GetWithin().AsDuration())
	}
	word := " or "
	if op := f.GetOperator(); op == typev1.PropertyOperator_PROPERTY_OPERATOR_BETWEEN || op == typev1.PropertyOperator_PROPERTY_OPERATOR_ALL_OF {
		word = " and "
	}
	var parts []string
	for i, o := range f.GetOperands() {
		if i == maxShownOperands && len(f.GetOperands()) > maxShownOperands+1 {
			parts = append(parts, fmt.Sprintf("%d more", len(f.GetOperands())-i))
			break
		}
		parts = append(parts, operand(o))
	}
	if len(parts) == 0 {
		return s
	}
	return s + " " + strings.Join(parts, word)
}

func span(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if d >= u.unit && d%u.unit == 0 {
			if n := d / u.unit; n > 1 {
				return fmt.Sprintf("%d %ss", n, u.name)
			}
			return u.name
		}
	}
	return d.String()
}

func operand(o *typev1.PropertyValue) string {
	switch v := o.GetValue().(type) {
	case *typev1.PropertyValue_StringValue:
		if v.StringValue == "" {
			return `""`
		}
		return v.StringValue
	case *typev1.PropertyValue_NumberValue:
		return number(v.NumberValue)
	case *typev1.PropertyValue_BoolValue:
		return strconv.FormatBool(v.BoolValue)
	case *typev1.PropertyValue_TimeValue:
		return instant(v.TimeValue.AsTime())
	}
	return ""
}
