// Package cohort is cohort definitions: their rules, their plain-English form,
// and how the answers of their leaves combine into the set of members.
package cohort

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

const (
	// MaxDepth is how many levels a definition may have.
	MaxDepth = 10
	// MaxLeaves is how many conditions a definition may have.
	MaxLeaves   = 100
	maxOperands = 50
)

// Validate checks a definition. The fault has one violation for each fault
// found, each with its path below field, e.g.
// "cohort.definition.all_of[1].property.type".
func Validate(field string, e *typev1.Expression) error {
	v := &validator{}
	v.expression(field, e, 1)
	if v.leaves > MaxLeaves {
		v.add(field, "has %d conditions; at most %d are allowed", v.leaves, MaxLeaves)
	}
	return v.err()
}

// err is what was found; nil when nothing was.
func (v *validator) err() error {
	if len(v.found) == 0 {
		return nil
	}
	f := fault.New(fault.Invalid, "INVALID_DEFINITION", "%s: %s", v.found[0].Field, v.found[0].Description)
	f.Violations = v.found
	return f
}

type validator struct {
	found  []fault.Violation
	leaves int
}

// maxViolations bounds an answer about a definition that is wrong everywhere.
const maxViolations = 20

func (v *validator) add(field, format string, args ...any) {
	if len(v.found) < maxViolations {
		v.found = append(v.found, fault.Violation{Field: field, Description: fmt.Sprintf(format, args...)})
	}
}

func (v *validator) expression(path string, e *typev1.Expression, depth int) {
	if depth > MaxDepth {
		v.add(path, "is nested deeper than %d levels", MaxDepth)
		return
	}
	switch n := e.GetNode().(type) {
	case *typev1.Expression_AllOf:
		v.list(path+".all_of", n.AllOf, depth)
	case *typev1.Expression_AnyOf:
		v.list(path+".any_of", n.AnyOf, depth)
	case *typev1.Expression_Not:
		v.expression(path+".not", n.Not, depth+1)
	case *typev1.Expression_Behavior:
		v.leaves++
		v.behavior(path+".behavior", n.Behavior)
	case *typev1.Expression_Property:
		v.leaves++
		if n.Property.GetFilter() == nil {
			v.add(path+".property.filter", "is required")
			return
		}
		v.filter(path+".property.filter", n.Property.GetFilter())
	case *typev1.Expression_Sequence:
		v.leaves++
		v.sequence(path+".sequence", n.Sequence)
	case *typev1.Expression_InCohort:
		v.leaves++
		v.inCohort(path+".in_cohort", n.InCohort)
	case *typev1.Expression_Ids:
		v.leaves++
		v.ids(path+".ids", n.Ids, depth)
	case *typev1.Expression_External:
		v.leaves++
		if depth > 1 {
			v.add(path+".external", "must be the whole definition; refer to that cohort with in_cohort")
		}
	default:
		v.add(path, "needs one of all_of, any_of, not, behavior, property, sequence, in_cohort, ids, external")
	}
}

func (v *validator) sequence(path string, s *typev1.SequenceLeaf) {
	n := len(s.GetSteps())
	if n < 2 || n > 5 {
		v.add(path+".steps", "needs 2 to 5 steps, not %d", n)
	}
	for i, step := range s.GetSteps() {
		at := fmt.Sprintf("%s.steps[%d]", path, i)
		v.events(at, step.GetEvents(), step.GetFilters())
		if step.GetDidNot() && i < n-1 {
			v.add(at+".did_not", "is for the last step only")
		}
	}
	if s.GetWithin() != nil && (!s.GetWithin().IsValid() || s.GetWithin().AsDuration() < time.Millisecond) {
		v.add(path+".within", "must be at least a millisecond, e.g. \"3600s\"")
	}
	v.window(path+".window", s.GetWindow())
}

func (v *validator) inCohort(path string, l *typev1.CohortLeaf) {
	if n := len(l.GetCohorts()); n < 1 || n > 20 {
		v.add(path+".cohorts", "needs 1 to 20 names, not %d", n)
	}
	for i, name := range l.GetCohorts() {
		if _, err := resource.IDs("cohorts", name, "projects", "cohorts"); err != nil {
			v.add(fmt.Sprintf("%s.cohorts[%d]", path, i), "must be projects/{project}/cohorts/{cohort}")
		}
	}
}

func (v *validator) ids(path string, l *typev1.IdsLeaf, depth int) {
	switch n := len(l.GetDistinctIds()); {
	case n == 0 && depth > 1:
		v.add(path+".distinct_ids", "needs 1 to 1,000 ids; uploaded ids are a whole definition: refer to that cohort with in_cohort")
	case n > 1000:
		v.add(path+".distinct_ids", "has %d ids; at most 1,000 are allowed: upload more as a CSV", n)
	}
	for i, id := range l.GetDistinctIds() {
		if id == "" || len(id) > 255 {
			v.add(fmt.Sprintf("%s.distinct_ids[%d]", path, i), "needs 1 to 255 bytes")
		}
	}
}

// events checks which events a leaf looks at.
func (v *validator) events(path string, names []string, filters []*typev1.PropertyFilter) {
	if len(names) == 0 || len(names) > 25 {
		v.add(path+".events", "needs 1 to 25 event names")
	}
	for i, name := range names {
		if strings.TrimSpace(name) == "" || len(name) > 255 {
			v.add(fmt.Sprintf("%s.events[%d]", path, i), "needs 1 to 255 characters")
		}
	}
	if len(filters) > 20 {
		v.add(path+".filters", "has %d filters; at most 20 are allowed", len(filters))
	}
	for i, f := range filters {
		v.filter(fmt.Sprintf("%s.filters[%d]", path, i), f)
	}
}

func (v *validator) list(path string, l *typev1.ExpressionList, depth int) {
	switch n := len(l.GetOperands()); {
	case n == 0:
		v.add(path, "needs at least one operand")
	case n > maxOperands:
		v.add(path, "has %d operands; at most %d are allowed", n, maxOperands)
		return
	}
	for i, o := range l.GetOperands() {
		v.expression(fmt.Sprintf("%s[%d]", path, i), o, depth+1)
	}
}

func (v *validator) behavior(path string, b *typev1.BehaviorLeaf) {
	v.events(path, b.GetEvents(), b.GetFilters())
	if b.GetFirstTime() && (b.GetMeasure() != 0 || b.GetComparator() != 0 || b.Threshold != nil || b.ThresholdHigh != nil) { //nolint:protogetter // presence matters
		v.add(path+".first_time", "goes with no measure, comparator or threshold")
	}
	if _, ok := typev1.Measure_name[int32(b.GetMeasure())]; !ok {
		v.add(path+".measure", "is unknown")
	}
	switch b.GetMeasure() {
	case typev1.Measure_MEASURE_UNSPECIFIED, typev1.Measure_MEASURE_COUNT, typev1.Measure_MEASURE_DISTINCT_DAYS:
		if b.GetMeasureProperty() != "" {
			v.add(path+".measure_property", "goes with SUM, AVERAGE, MIN, MAX and DISTINCT only")
		}
	default:
		if b.GetMeasureProperty() == "" {
			v.add(path+".measure_property", "is required by the measure")
		}
	}
	if _, ok := typev1.Comparator_name[int32(b.GetComparator())]; !ok {
		v.add(path+".comparator", "is unknown")
	}
	between := b.GetComparator() == typev1.Comparator_COMPARATOR_BETWEEN
	for name, t := range map[string]*float64{"threshold": b.Threshold, "threshold_high": b.ThresholdHigh} { //nolint:protogetter // presence matters
		if t != nil && (math.IsNaN(*t) || math.IsInf(*t, 0)) {
			v.add(path+"."+name, "must be a finite number")
		}
		if t != nil && *t < 0 && countsOnly(b.GetMeasure()) {
			v.add(path+"."+name, "can't be negative: it is compared with a count")
		}
	}
	switch {
	case between && (b.Threshold == nil || b.ThresholdHigh == nil): //nolint:protogetter // presence matters
		v.add(path+".threshold_high", "BETWEEN needs threshold and threshold_high")
	case between && b.GetThresholdHigh() < b.GetThreshold():
		v.add(path+".threshold_high", "must not be below threshold")
	case !between && b.ThresholdHigh != nil: //nolint:protogetter // presence matters
		v.add(path+".threshold_high", "goes with BETWEEN only")
	}
	v.window(path+".window", b.GetWindow())
}

// countsOnly reports whether a measure is never negative.
func countsOnly(m typev1.Measure) bool {
	switch m {
	case typev1.Measure_MEASURE_UNSPECIFIED, typev1.Measure_MEASURE_COUNT, typev1.Measure_MEASURE_DISTINCT_DAYS, typev1.Measure_MEASURE_DISTINCT:
		return true
	default:
		return false
	}
}

func (v *validator) window(path string, w *typev1.Window) {
	switch s := w.GetSpan().(type) {
	case *typev1.Window_Last:
		if s.Last.GetAmount() < 1 || s.Last.GetAmount() > 100000 {
			v.add(path+".last.amount", "must be 1 to 100,000")
		}
		if u := s.Last.GetUnit(); u == 0 || typev1.RelativeWindow_Unit_name[int32(u)] == "" {
			v.add(path+".last.unit", "must be MINUTE, HOUR, DAY, WEEK or MONTH")
		}
	case *typev1.Window_Between:
		a, b := s.Between.GetStart(), s.Between.GetEnd()
		switch {
		case !a.IsValid():
			v.add(path+".between.start", "is required")
		case !b.IsValid():
			v.add(path+".between.end", "is required")
		case !b.AsTime().After(a.AsTime()):
			v.add(path+".between.end", "must be after start")
		}
	case *typev1.Window_Since:
		if !s.Since.IsValid() {
			v.add(path+".since", "must be a time")
		}
	case *typev1.Window_AllTime:
		if !s.AllTime {
			v.add(path+".all_time", "must be true when given")
		}
	}
}

// operandType is the kind of operand a value type is compared with; operators
// of lists compare with texts, numbers or booleans.
var operandType = map[typev1.ValueType]string{
	typev1.ValueType_VALUE_TYPE_STRING:   "string_value",
	typev1.ValueType_VALUE_TYPE_NUMBER:   "number_value",
	typev1.ValueType_VALUE_TYPE_BOOL:     "bool_value",
	typev1.ValueType_VALUE_TYPE_DATETIME: "time_value",
	typev1.ValueType_VALUE_TYPE_LIST:     "",
}

func typesOf(op typev1.PropertyOperator) []typev1.ValueType {
	const (
		str, num, boo  = typev1.ValueType_VALUE_TYPE_STRING, typev1.ValueType_VALUE_TYPE_NUMBER, typev1.ValueType_VALUE_TYPE_BOOL
		date, listType = typev1.ValueType_VALUE_TYPE_DATETIME, typev1.ValueType_VALUE_TYPE_LIST
	)
	switch op {
	case typev1.PropertyOperator_PROPERTY_OPERATOR_IS_SET, typev1.PropertyOperator_PROPERTY_OPERATOR_IS_NOT_SET:
		return []typev1.ValueType{str, num, boo, date, listType}
	case typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS, typev1.PropertyOperator_PROPERTY_OPERATOR_NOT_EQUALS:
		return []typev1.ValueType{str, num, boo, date}
	case typev1.PropertyOperator_PROPERTY_OPERATOR_CONTAINS, typev1.PropertyOperator_PROPERTY_OPERATOR_NOT_CONTAINS,
		typev1.PropertyOperator_PROPERTY_OPERATOR_STARTS_WITH, typev1.PropertyOperator_PROPERTY_OPERATOR_ENDS_WITH:
		return []typev1.ValueType{str}
	case typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER, typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER_OR_EQUAL,
		typev1.PropertyOperator_PROPERTY_OPERATOR_LESS, typev1.PropertyOperator_PROPERTY_OPERATOR_LESS_OR_EQUAL,
		typev1.PropertyOperator_PROPERTY_OPERATOR_BETWEEN:
		return []typev1.ValueType{num, date}
	case typev1.PropertyOperator_PROPERTY_OPERATOR_WITHIN_LAST:
		return []typev1.ValueType{date}
	case typev1.PropertyOperator_PROPERTY_OPERATOR_ANY_OF, typev1.PropertyOperator_PROPERTY_OPERATOR_ALL_OF:
		return []typev1.ValueType{listType}
	case typev1.PropertyOperator_PROPERTY_OPERATOR_UNSPECIFIED:
	}
	return nil
}

func (v *validator) filter(path string, f *typev1.PropertyFilter) {
	if f.GetProperty() == "" || len(f.GetProperty()) > 255 {
		v.add(path+".property", "needs 1 to 255 characters")
	}
	want, known := operandType[f.GetType()]
	if !known {
		v.add(path+".type", "must be STRING, NUMBER, BOOL, DATETIME or LIST")
		return
	}
	allowed := typesOf(f.GetOperator())
	if allowed == nil {
		v.add(path+".operator", "is unknown or not set")
		return
	}
	fits := false
	for _, t := range allowed {
		fits = fits || t == f.GetType()
	}
	if !fits {
		v.add(path+".operator", "%s does not go with type %s", short(f.GetOperator().String()), short(f.GetType().String()))
		return
	}
	v.operands(path, f, want)
}

func (v *validator) operands(path string, f *typev1.PropertyFilter, want string) {
	n := len(f.GetOperands())
	switch f.GetOperator() {
	case typev1.PropertyOperator_PROPERTY_OPERATOR_IS_SET, typev1.PropertyOperator_PROPERTY_OPERATOR_IS_NOT_SET:
		if n != 0 {
			v.add(path+".operands", "takes none")
		}
	case typev1.PropertyOperator_PROPERTY_OPERATOR_WITHIN_LAST:
		if n != 0 {
			v.add(path+".operands", "takes none; use within")
		}
		if !f.GetWithin().IsValid() || f.GetWithin().AsDuration() <= 0 {
			v.add(path+".within", "must be a positive duration")
		}
	case typev1.PropertyOperator_PROPERTY_OPERATOR_BETWEEN:
		if n != 2 {
			v.add(path+".operands", "BETWEEN takes two, not %d", n)
		}
	case typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER, typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER_OR_EQUAL,
		typev1.PropertyOperator_PROPERTY_OPERATOR_LESS, typev1.PropertyOperator_PROPERTY_OPERATOR_LESS_OR_EQUAL:
		if n != 1 {
			v.add(path+".operands", "takes one, not %d", n)
		}
	default:
		if n < 1 || n > 1000 {
			v.add(path+".operands", "takes 1 to 1,000, not %d", n)
		}
	}
	for i, o := range f.GetOperands() {
		at := fmt.Sprintf("%s.operands[%d]", path, i)
		got := operandKind(o)
		switch {
		case got == "":
			v.add(at, "needs a value")
		case want != "" && got != want:
			v.add(at, "is %s; type %s takes %s", got, short(f.GetType().String()), want)
		case want == "" && got == "time_value":
			v.add(at, "lists are compared with string_value, number_value or bool_value")
		case got == "number_value" && (math.IsNaN(o.GetNumberValue()) || math.IsInf(o.GetNumberValue(), 0)):
			v.add(at, "must be a finite number")
		case got == "string_value" && len(o.GetStringValue()) > 4*255:
			v.add(at, "has more than 255 characters")
		}
	}
}

func operandKind(o *typev1.PropertyValue) string {
	switch o.GetValue().(type) {
	case *typev1.PropertyValue_StringValue:
		return "string_value"
	case *typev1.PropertyValue_NumberValue:
		return "number_value"
	case *typev1.PropertyValue_BoolValue:
		return "bool_value"
	case *typev1.PropertyValue_TimeValue:
		return "time_value"
	}
	return ""
}

// short is an enum value's name without the enum's own.
func short(name string) string {
	for _, p := range []string{"PROPERTY_OPERATOR_", "VALUE_TYPE_", "COMPARATOR_", "MEASURE_", "UNIT_"} {
		if s, ok := strings.CutPrefix(name, p); ok {
			return s
		}
	}
	return name
}
