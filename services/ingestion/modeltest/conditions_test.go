package modeltest_test

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// What follows says what conditions mean, as slowly as that can be said.

// text, number, truth and moment are a value's meaning as a type; ok is false for a
// value of another type.
func number(v any) (float64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	f, err := n.Float64()
	return f, err == nil
}

func moment(v any) (int64, bool) {
	s, ok := v.(string)
	if !ok {
		return 0, false
	}
	for _, layout := range []string{time.DateOnly, "2006-01-02T15:04", "2006-01-02T15:04:05", time.RFC3339Nano} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UnixMilli(), true
		}
	}
	return 0, false
}

func equals(v any, o *typev1.PropertyValue) bool {
	switch o := o.GetValue().(type) {
	case *typev1.PropertyValue_StringValue:
		return v == o.StringValue
	case *typev1.PropertyValue_NumberValue:
		n, ok := number(v)
		return ok && n == o.NumberValue
	case *typev1.PropertyValue_BoolValue:
		return v == o.BoolValue
	case *typev1.PropertyValue_TimeValue:
		ms, ok := moment(v)
		return ok && ms == o.TimeValue.AsTime().UnixMilli()
	}
	return false
}

// meets says whether a filter holds of a value, asOf given.
func meets(f *typev1.PropertyFilter, v any, asOf time.Time) bool {
	anyOperand := func(is func(o *typev1.PropertyValue) bool) bool { return slices.ContainsFunc(f.GetOperands(), is) }
	switch f.GetOperator() {
	case typev1.PropertyOperator_PROPERTY_OPERATOR_IS_SET:
		return v != nil
	case typev1.PropertyOperator_PROPERTY_OPERATOR_IS_NOT_SET:
		return v == nil
	case typev1.PropertyOperator_PROPERTY_OPERATOR_ANY_OF, typev1.PropertyOperator_PROPERTY_OPERATOR_ALL_OF:
		list, ok := v.([]any)
		if !ok {
			return false
		}
		has := func(o *typev1.PropertyValue) bool {
			return slices.ContainsFunc(list, func(x any) bool { return equals(x, o) })
		}
		if f.GetOperator() == typev1.PropertyOperator_PROPERTY_OPERATOR_ANY_OF {
			return anyOperand(has)
		}
		return !anyOperand(func(o *typev1.PropertyValue) bool { return !has(o) })
	default:
	}
	var rank float64
	text, isText := v.(string)
	switch f.GetType() {
	case typev1.ValueType_VALUE_TYPE_STRING:
		if !isText {
			return false
		}
	case typev1.ValueType_VALUE_TYPE_NUMBER:
		n, ok := number(v)
		if !ok {
			return false
		}
		rank = n
	case typev1.ValueType_VALUE_TYPE_BOOL:
		if _, ok := v.(bool); !ok {
			return false
		}
	default:
		ms, ok := moment(v)
		if !ok {
			return false
		}
		rank = float64(ms)
	}
	bound := func(i int) float64 {
		if t := f.GetOperands()[i].GetTimeValue(); t != nil {
			return float64(t.AsTime().UnixMilli())
		}
		return f.GetOperands()[i].GetNumberValue()
	}
	switch f.GetOperator() {
	case typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS:
		return anyOperand(func(o *typev1.PropertyValue) bool { return equals(v, o) })
	case typev1.PropertyOperator_PROPERTY_OPERATOR_NOT_EQUALS:
		return !anyOperand(func(o *typev1.PropertyValue) bool { return equals(v, o) })
	case typev1.PropertyOperator_PROPERTY_OPERATOR_CONTAINS, typev1.PropertyOperator_PROPERTY_OPERATOR_NOT_CONTAINS:
		found := anyOperand(func(o *typev1.PropertyValue) bool {
			return strings.Contains(strings.ToLower(text), strings.ToLower(o.GetStringValue()))
		})
		return found == (f.GetOperator() == typev1.PropertyOperator_PROPERTY_OPERATOR_CONTAINS)
	case typev1.PropertyOperator_PROPERTY_OPERATOR_STARTS_WITH:
		return anyOperand(func(o *typev1.PropertyValue) bool { return strings.HasPrefix(text, o.GetStringValue()) })
	case typev1.PropertyOperator_PROPERTY_OPERATOR_ENDS_WITH:
		return anyOperand(func(o *typev1.PropertyValue) bool { return strings.HasSuffix(text, o.GetStringValue()) })
	case typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER:
		return rank > bound(0)
	case typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER_OR_EQUAL:
		return rank >= bound(0)
	case typev1.PropertyOperator_PROPERTY_OPERATOR_LESS:
		return rank < bound(0)
	case typev1.PropertyOperator_PROPERTY_OPERATOR_LESS_OR_EQUAL:
		return rank <= bound(0)
	case typev1.PropertyOperator_PROPERTY_OPERATOR_BETWEEN:
		return rank >= bound(0) && rank <= bound(1)
	default: // WITHIN_LAST
		return rank >= float64(asOf.Add(-f.GetWithin().AsDuration()).UnixMilli()) && rank <= float64(asOf.UnixMilli())
	}
}

// inWindow says whether an event's time is in a window that ends at asOf.
func inWindow(w *typev1.Window, ms int64, asOf time.Time) bool {
	if ms > asOf.UnixMilli() {
		return false
	}
	switch s := w.GetSpan().(type) {
	case *typev1.Window_Between:
		return ms >= s.Between.GetStart().AsTime().UnixMilli() && ms < s.Between.GetEnd().AsTime().UnixMilli()
	case *typev1.Window_Since:
		return ms >= s.Since.AsTime().UnixMilli()
	case *typev1.Window_Last:
		n := int(s.Last.GetAmount())
		from := asOf.UTC()
		switch s.Last.GetUnit() {
		case typev1.RelativeWindow_UNIT_MINUTE:
			from = from.Add(-time.Duration(n) * time.Minute)
		case typev1.RelativeWindow_UNIT_HOUR:
			from = from.Add(-time.Duration(n) * time.Hour)
		case typev1.RelativeWindow_UNIT_DAY:
			from = from.Add(-time.Duration(n) * 24 * time.Hour)
		case typev1.RelativeWindow_UNIT_WEEK:
			from = from.Add(-time.Duration(n) * 7 * 24 * time.Hour)
		default: // months: the same day, or the last one of a shorter month
			day := from.Day()
			for from = from.AddDate(0, -n, 0); from.Day() != day; from = from.AddDate(0, 0, -1) {
				if from.Day() > 27 {
					break
				}
			}
		}
		return ms >= from.UnixMilli()
	}
	return true
}

func matches(e *storedEvent, names []string, filters []*typev1.PropertyFilter, asOf time.Time) bool {
	if !slices.Contains(names, e.name) || e.time > asOf.UnixMilli() {
		return false
	}
	for _, f := range filters {
		v := e.props[f.GetProperty()]
		if f.GetProperty() == "$source" && v == nil && e.source != "" {
			v = e.source
		}
		if !meets(f, v, asOf) {
			return false
		}
	}
	return true
}

func (p *project) behaves(b *typev1.BehaviorLeaf, events []*storedEvent, asOf time.Time) bool {
	if b.GetFirstTime() {
		first := int64(-1)
		for _, e := range events {
			if slices.Contains(b.GetEvents(), e.name) && (first < 0 || e.time < first) {
				first = e.time
			}
		}
		return slices.ContainsFunc(events, func(e *storedEvent) bool {
			return e.time == first && inWindow(b.GetWindow(), e.time, asOf) && matches(e, b.GetEvents(), b.GetFilters(), asOf)
		})
	}
	var values []float64
	distinct, days := map[string]bool{}, map[int64]bool{}
	count := 0
	for _, e := range events {
		if !matches(e, b.GetEvents(), b.GetFilters(), asOf) || !inWindow(b.GetWindow(), e.time, asOf) {
			continue
		}
		count++
		days[e.time/86_400_000] = true
		v := e.props[b.GetMeasureProperty()]
		if n, ok := number(v); ok {
			values = append(values, n)
		}
		if v != nil {
			distinct[canonical(v)] = true
		}
	}
	if count == 0 {
		return false
	}
	var x float64
	switch b.GetMeasure() {
	case typev1.Measure_MEASURE_DISTINCT:
		x = float64(len(distinct))
	case typev1.Measure_MEASURE_DISTINCT_DAYS:
		x = float64(len(days))
	case typev1.Measure_MEASURE_SUM, typev1.Measure_MEASURE_AVERAGE, typev1.Measure_MEASURE_MIN, typev1.Measure_MEASURE_MAX:
		if len(values) == 0 {
			return false
		}
		switch b.GetMeasure() {
		case typev1.Measure_MEASURE_MIN:
			x = slices.Min(values)
		case typev1.Measure_MEASURE_MAX:
			x = slices.Max(values)
		default:
			for _, v := range values {
				x += v
			}
			if b.GetMeasure() == typev1.Measure_MEASURE_AVERAGE {
				x /= float64(len(values))
			}
		}
	default:
		x = float64(count)
	}
	t := 1.0
	if b.Threshold != nil {
		t = b.GetThreshold()
	}
	switch b.GetComparator() {
	case typev1.Comparator_COMPARATOR_EQUAL:
		return x == t
	case typev1.Comparator_COMPARATOR_NOT_EQUAL:
		return x != t
	case typev1.Comparator_COMPARATOR_GREATER:
		return x > t
	case typev1.Comparator_COMPARATOR_LESS:
		return x < t
	case typev1.Comparator_COMPARATOR_LESS_OR_EQUAL:
		return x <= t
	case typev1.Comparator_COMPARATOR_BETWEEN:
		return x >= t && x <= b.GetThresholdHigh()
	default:
		return x >= t
	}
}

// follows says whether the steps from the i-th on can be done after an instant.
func follows(s *typev1.SequenceLeaf, events []*storedEvent, i int, after, first int64, asOf time.Time) bool {
	if i == len(s.GetSteps()) {
		return true
	}
	end := asOf.UnixMilli()
	if s.GetWithin() != nil {
		end = first + s.GetWithin().AsDuration().Milliseconds()
	}
	step := s.GetSteps()[i]
	if step.GetDidNot() {
		if end > asOf.UnixMilli() {
			return false // it may still be done
		}
		return !slices.ContainsFunc(events, func(e *storedEvent) bool {
			return e.time > after && e.time <= end && matches(e, step.GetEvents(), step.GetFilters(), asOf)
		})
	}
	return slices.ContainsFunc(events, func(e *storedEvent) bool {
		return e.time > after && e.time <= end && matches(e, step.GetEvents(), step.GetFilters(), asOf) && follows(s, events, i+1, e.time, first, asOf)
	})
}

func sequential(s *typev1.SequenceLeaf, events []*storedEvent, asOf time.Time) bool {
	return slices.ContainsFunc(events, func(e *storedEvent) bool {
		return inWindow(s.GetWindow(), e.time, asOf) && matches(e, s.GetSteps()[0].GetEvents(), s.GetSteps()[0].GetFilters(), asOf) && follows(s, events, 1, e.time, e.time, asOf)
	})
}

// members are the numbers of the users that a condition selects.
func (p *project) members(l *ingestionv1.Leaf, by map[*account][]*storedEvent, asOf time.Time) []int {
	out := []int{}
	known := map[*account]bool{}
	for _, id := range l.GetIds().GetDistinctIds() {
		k := p.ids[id]
		if device, ok := strings.CutPrefix(id, "$device:"); k == nil && ok && p.system == original && len(device) == 36 {
			k = p.ids[device] // where its events went
		}
		if k != nil {
			known[k.account.user()] = true
		}
	}
	set := roaring64.New()
	if l.GetUsers() != nil {
		if err := set.UnmarshalBinary(l.GetUsers().GetRoaring()); err != nil {
			panic(err)
		}
	}
	strangers := set.Clone()
	for _, a := range p.accounts {
		strangers.Remove(uint64(a.n + 1))  //nolint:gosec // a count
		if set.Contains(uint64(a.n + 1)) { //nolint:gosec // a count
			known[a.user()] = true
		}
	}
	for _, a := range p.accounts {
		if a.into != nil {
			continue
		}
		in := known[a]
		switch {
		case l.GetBehavior() != nil:
			in = p.behaves(l.GetBehavior(), by[a], asOf)
		case l.GetSequence() != nil:
			in = sequential(l.GetSequence(), by[a], asOf)
		case l.GetProperty() != nil:
			in = a.profile != nil && meets(l.GetProperty().GetFilter(), a.profile[l.GetProperty().GetFilter().GetProperty()], asOf)
		}
		if in {
			out = append(out, a.n+1)
		}
	}
	for it := strangers.Iterator(); it.HasNext(); {
		out = append(out, int(it.Next())) //nolint:gosec // small
	}
	return out
}
