package modeltest_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// leafMaker makes random conditions of cohorts over what histories have.
type leafMaker struct {
	r     *rand.Rand
	now   time.Time
	ids   []string
	steps int // how many a sequence may have: the model tries all ways
}

// conditions are the conditions that a project is asked at a checkpoint, and the
// instant they are asked for.
func (p *project) conditions(now time.Time) ([]*ingestionv1.Leaf, time.Time) {
	now = now.UTC().Truncate(time.Millisecond)
	r := rand.New(rand.NewPCG(uint64(len(p.events)), uint64(p.id))) //nolint:gosec // repeatable on purpose
	g := &leafMaker{r: r, now: now, ids: append(sortedKeys(p.ids), "stranger"), steps: 4}
	by := map[*account]int{}
	for _, e := range p.events {
		if e.account != nil {
			if by[e.account.user()]++; by[e.account.user()] > 150 {
				g.steps = 2
			}
		}
	}
	asOf := now.Add(time.Hour)
	if r.IntN(3) == 0 {
		asOf = now.Add(-time.Duration(r.Int64N(int64(72 * time.Hour)))).Truncate(time.Millisecond)
	}
	var out []*ingestionv1.Leaf
	for range 40 {
		out = append(out, g.leaf())
	}
	return out, asOf
}

func (g *leafMaker) leaf() *ingestionv1.Leaf {
	switch k := g.r.IntN(20); {
	case k < 9:
		return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Behavior{Behavior: g.behavior()}}
	case k < 13:
		s := &typev1.SequenceLeaf{Window: g.window()}
		n := 2 + g.r.IntN(g.steps-1)
		for i := range n {
			s.Steps = append(s.Steps, &typev1.SequenceStep{Events: g.names(), Filters: g.filters(), DidNot: i == n-1 && g.r.IntN(2) == 0})
		}
		if g.r.IntN(2) == 0 {
			s.Within = durationpb.New(time.Duration(g.r.Int64N(int64(48*time.Hour))) + time.Millisecond)
		}
		return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Sequence{Sequence: s}}
	case k < 14:
		l := &typev1.IdsLeaf{}
		for range 1 + g.r.IntN(4) {
			l.DistinctIds = append(l.DistinctIds, g.ids[g.r.IntN(len(g.ids))])
		}
		return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Ids{Ids: l}}
	case k < 15:
		set := roaring64.New()
		for range g.r.IntN(6) {
			set.Add(uint64(1 + g.r.IntN(len(g.ids)))) //nolint:gosec // small
		}
		b, err := set.ToBytes()
		if err != nil {
			panic(err)
		}
		return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Users{Users: &ingestionv1.UserSet{Roaring: b, Count: set.GetCardinality()}}}
	}
	return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Property{Property: &typev1.PropertyLeaf{Filter: g.filter(plain)}}}
}

func (g *leafMaker) names() []string {
	all := []string{"E", "View", "Purchase", "UTM Visited", "$opt_in", "Nothing"}
	g.r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1+g.r.IntN(2)]
}

func (g *leafMaker) filters() (out []*typev1.PropertyFilter) {
	for range max(0, g.r.IntN(5)-2) {
		out = append(out, g.filter([]string{"plan", "n", "list", "obj", "ö", "when", "$source"}))
	}
	return out
}

func (g *leafMaker) behavior() *typev1.BehaviorLeaf {
	b := &typev1.BehaviorLeaf{Events: g.names(), Filters: g.filters(), Window: g.window()}
	switch {
	case g.r.IntN(5) == 0:
		b.FirstTime = true
	case g.r.IntN(4) > 0:
		b.Measure = typev1.Measure(1 + g.r.IntN(7)) //nolint:gosec // small
		if b.GetMeasure() != typev1.Measure_MEASURE_COUNT && b.GetMeasure() != typev1.Measure_MEASURE_DISTINCT_DAYS {
			b.MeasureProperty = []string{"n", "plan", "list"}[g.r.IntN(3)]
		}
		b.Comparator = typev1.Comparator(1 + g.r.IntN(7)) //nolint:gosec // small
		b.Threshold = proto.Float64(float64(g.r.IntN(5)))
		switch b.GetMeasure() {
		case typev1.Measure_MEASURE_SUM, typev1.Measure_MEASURE_AVERAGE:
			b.Threshold = proto.Float64(float64(g.r.IntN(5)) + 0.3) // which no rounding hits
		default:
		}
		if b.GetComparator() == typev1.Comparator_COMPARATOR_BETWEEN {
			b.ThresholdHigh = proto.Float64(b.GetThreshold() + float64(g.r.IntN(3)))
		}
	}
	return b
}

func (g *leafMaker) instant() *timestamppb.Timestamp {
	return timestamppb.New(g.now.Add(-time.Duration(g.r.Int64N(int64(120 * time.Hour)))).Truncate(time.Millisecond))
}

func (g *leafMaker) window() *typev1.Window {
	switch g.r.IntN(6) {
	case 0:
		return &typev1.Window{Span: &typev1.Window_Last{Last: &typev1.RelativeWindow{Amount: int32(1 + g.r.IntN(60)), Unit: typev1.RelativeWindow_Unit(1 + g.r.IntN(2))}}} //nolint:gosec // small
	case 1:
		return &typev1.Window{Span: &typev1.Window_Last{Last: &typev1.RelativeWindow{Amount: int32(1 + g.r.IntN(3)), Unit: typev1.RelativeWindow_Unit(3 + g.r.IntN(3))}}} //nolint:gosec // small
	case 2:
		from := g.instant()
		return &typev1.Window{Span: &typev1.Window_Between{Between: &typev1.BetweenWindow{Start: from, End: timestamppb.New(from.AsTime().Add(time.Duration(1 + g.r.Int64N(int64(72*time.Hour)))).Truncate(time.Millisecond).Add(time.Millisecond))}}}
	case 3:
		return &typev1.Window{Span: &typev1.Window_Since{Since: g.instant()}}
	}
	return nil
}

func (g *leafMaker) operand(t typev1.ValueType) *typev1.PropertyValue {
	switch t {
	case typev1.ValueType_VALUE_TYPE_NUMBER:
		return &typev1.PropertyValue{Value: &typev1.PropertyValue_NumberValue{NumberValue: []float64{0, 1, 2, 3, 2.5, -3}[g.r.IntN(6)]}}
	case typev1.ValueType_VALUE_TYPE_BOOL:
		return &typev1.PropertyValue{Value: &typev1.PropertyValue_BoolValue{BoolValue: g.r.IntN(2) == 0}}
	case typev1.ValueType_VALUE_TYPE_DATETIME:
		return &typev1.PropertyValue{Value: &typev1.PropertyValue_TimeValue{TimeValue: timestamppb.New(time.Date(2026, 1, 1+g.r.IntN(4), 12*g.r.IntN(2), 0, 0, 0, time.UTC))}}
	default:
		return &typev1.PropertyValue{Value: &typev1.PropertyValue_StringValue{StringValue: []string{"a", "A", "b", "", "ü", "x", "clever", "1"}[g.r.IntN(8)]}}
	}
}

func (g *leafMaker) filter(properties []string) *typev1.PropertyFilter {
	f := &typev1.PropertyFilter{Property: properties[g.r.IntN(len(properties))], Type: typev1.ValueType(1 + g.r.IntN(5))} //nolint:gosec // small
	operators := map[typev1.ValueType][]typev1.PropertyOperator{
		typev1.ValueType_VALUE_TYPE_STRING: {1, 2, 3, 4, 5, 6, 7, 8}, typev1.ValueType_VALUE_TYPE_NUMBER: {1, 3, 4, 9, 10, 11, 12, 13},
		typev1.ValueType_VALUE_TYPE_BOOL: {2, 3, 4}, typev1.ValueType_VALUE_TYPE_DATETIME: {3, 4, 9, 10, 11, 12, 13, 14}, typev1.ValueType_VALUE_TYPE_LIST: {15, 16},
	}[f.GetType()]
	f.Operator = operators[g.r.IntN(len(operators))]
	n := 1 + g.r.IntN(2)
	switch f.GetOperator() {
	case typev1.PropertyOperator_PROPERTY_OPERATOR_IS_SET, typev1.PropertyOperator_PROPERTY_OPERATOR_IS_NOT_SET:
		n = 0
	case typev1.PropertyOperator_PROPERTY_OPERATOR_WITHIN_LAST:
		n, f.Within = 0, durationpb.New(time.Duration(1+g.r.Int64N(int64(40*24*time.Hour))))
	case typev1.PropertyOperator_PROPERTY_OPERATOR_BETWEEN:
		n = 2
	case typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER, typev1.PropertyOperator_PROPERTY_OPERATOR_GREATER_OR_EQUAL,
		typev1.PropertyOperator_PROPERTY_OPERATOR_LESS, typev1.PropertyOperator_PROPERTY_OPERATOR_LESS_OR_EQUAL:
		n = 1
	default:
	}
	for range n {
		t := f.GetType()
		if t == typev1.ValueType_VALUE_TYPE_LIST {
			t = typev1.ValueType(1 + g.r.IntN(3)) //nolint:gosec // small
		}
		f.Operands = append(f.Operands, g.operand(t))
	}
	return f
}

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

func described(i int, l *ingestionv1.Leaf, asOf time.Time, members any) string {
	b, err := protojson.Marshal(l)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("condition %d as of %s: %v selected by %s", i, asOf.Format(time.RFC3339Nano), members, strings.ReplaceAll(string(b), " ", ""))
}

// byUser are the events of each user.
func (p *project) byUser() map[*account][]*storedEvent {
	by := map[*account][]*storedEvent{}
	for _, e := range p.events {
		if e.account != nil {
			by[e.account.user()] = append(by[e.account.user()], e)
		}
	}
	return by
}

// selected are the conditions' users by the model.
func (p *project) selected(now time.Time) (out []string) {
	by := p.byUser()
	leaves, asOf := p.conditions(now)
	for i, l := range leaves {
		out = append(out, described(i, l, asOf, p.members(l, by, asOf)))
	}
	return out
}

// selected are the conditions' users by the service.
func (v *service) selected(p *project) (out []string, err error) {
	leaves, asOf := p.conditions(v.now)
	answers := &sink[ingestionv1.EvaluateLeavesResponse]{}
	if err := v.Evaluation.EvaluateLeaves(&ingestionv1.EvaluateLeavesRequest{Parent: fmt.Sprintf("projects/%d", p.id), AsOf: timestamppb.New(asOf), Leaves: leaves}, answers); err != nil {
		return nil, err
	}
	for i, l := range leaves {
		bm := roaring64.New()
		if err := bm.UnmarshalBinary(answers.got[i].GetLeaf().GetUsers().GetRoaring()); err != nil {
			return nil, err
		}
		out = append(out, described(i, l, asOf, bm.ToArray()))
	}
	return out, nil
}
