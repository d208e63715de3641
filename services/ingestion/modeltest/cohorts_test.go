package modeltest_test

import (
	"fmt"
	"math/rand/v2"
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
