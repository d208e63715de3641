// Package leaf holds the conditions that cohort definitions are made of and
// their rules; the warehouse compiles them to its own queries.
package leaf

import (
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// Comparator compares a measure with a threshold.
type Comparator uint8

// The comparators.
const (
	Equal Comparator = iota + 1
	NotEqual
	Greater
	GreaterOrEqual
	Less
	LessOrEqual
	Between
)

// Measure is what is computed per user over the matching events.
type Measure uint8

// The measures.
const (
	Count Measure = iota + 1
	Sum
	Average
	Min
	Max
	Distinct
	DistinctDays
)

// Type is the type a value must have for a filter to look at it.
type Type uint8

// The types.
const (
	String Type = iota + 1
	Number
	Bool
	Datetime
	List
)

// Operator compares a property.
type Operator uint8

// The operators.
const (
	IsSet Operator = iota + 1
	IsNotSet
	Equals
	NotEquals
	Contains
	NotContains
	StartsWith
	EndsWith
	GreaterThan
	AtLeast
	LessThan
	AtMost
	InRange
	WithinLast
	AnyOf
	AllOf
)

// Operand is one value a filter compares with; Type says which field counts.
type Operand struct {
	// Type is String, Number, Bool or Datetime.
	Type Type
	// Text, Num, Flag and TimeMS are the value; TimeMS in Unix milliseconds.
	Text   string
	Num    float64
	Flag   bool
	TimeMS int64
}

// Filter is one condition on one property.
type Filter struct {
	// Property is the exact name.
	Property string
	// Type is the type the value must have.
	Type Type
	// Op is how it is compared.
	Op Operator
	// Operands are what with.
	Operands []Operand
	// Within is how far back WithinLast looks.
	Within time.Duration
}

// Span is a span of event time in Unix milliseconds, [From, To).
type Span struct{ From, To int64 }

// Behavior selects users by their events.
type Behavior struct {
	// Events are exact names, any of which counts.
	Events []string
	// Filters are conditions on the event's properties, all of which must hold.
	Filters []Filter
	// Measure is what to compute; Property what of.
	Measure  Measure
	Property string
	// Comparator, Threshold and High are how it is compared.
	Comparator      Comparator
	Threshold, High float64
	// Span is when the events happened.
	Span Span
	// FirstTime looks at the earliest of all events with one of the names only: it
	// must be in Span and the filters must hold of it.
	FirstTime bool
}

// Step is one step of a sequence.
type Step struct {
	// Events are exact names, any of which counts.
	Events []string
	// Filters are conditions on the event's properties, all of which must hold.
	Filters []Filter
	// DidNot is of the last step only: nothing of it happened.
	DidNot bool
}

// Sequence selects users by steps one after the other.
type Sequence struct {
	// Steps are 2 to 5, each later than the one before.
	Steps []Step
	// Within is how long after the first step the last may be; 0 is no limit.
	Within time.Duration
	// Span is when the first step happened.
	Span Span
	// AsOfMS is the last instant of later steps, Unix milliseconds.
	AsOfMS int64
}

// Leaf is one condition: exactly one of the fields is set.
type Leaf struct {
	// Behavior selects by events, Property by a profile property.
	Behavior *Behavior
	Property *Filter
	// Sequence selects by the order of events.
	Sequence *Sequence
	// Users selects users that are known, and those they were merged into.
	Users *roaring64.Bitmap
}

// Validate checks a leaf; path is where it stands, for the error, which is an
// Invalid fault.
func (l *Leaf) Validate(path string) error {
	switch {
	case l.Behavior != nil:
		return l.Behavior.validate(path + ".behavior")
	case l.Property != nil:
		return l.Property.validate(path + ".property.filter")
	case l.Sequence != nil:
		return l.Sequence.validate(path + ".sequence")
	case l.Users != nil:
		return nil
	}
	return fault.Field(path, "must be a behavior, a property, a sequence, ids or users")
}

func (s *Sequence) validate(path string) error {
	if len(s.Steps) < 2 || len(s.Steps) > 5 {
		return fault.Field(path+".steps", "needs 2 to 5 steps")
	}
	if s.Within < 0 || s.Within > 0 && s.Within < time.Millisecond {
		return fault.Field(path+".within", "must be at least a millisecond")
	}
	if s.Span.From > s.Span.To {
		return fault.Field(path+".window", "the start must be before the end, and not after as_of")
	}
	for i := range s.Steps {
		at := path + ".steps[" + strconv.Itoa(i) + "]"
		if err := validEvents(at, s.Steps[i].Events, s.Steps[i].Filters); err != nil {
			return err
		}
		if s.Steps[i].DidNot && i < len(s.Steps)-1 {
			return fault.Field(at+".did_not", "is for the last step only")
		}
	}
	return nil
}

func validEvents(path string, events []string, filters []Filter) error {
	if len(events) == 0 || slices.Contains(events, "") {
		return fault.Field(path+".events", "must name 1 to 25 events")
	}
	for i := range filters {
		if err := filters[i].validate(path + ".filters[" + strconv.Itoa(i) + "]"); err != nil {
			return err
		}
	}
	return nil
}

func (b *Behavior) validate(path string) error {
	if err := validEvents(path, b.Events, b.Filters); err != nil {
		return err
	}
	if b.FirstTime && (b.Measure != Count || b.Comparator != GreaterOrEqual || b.Threshold != 1) {
		return fault.Field(path+".first_time", "goes with no measure, comparator or threshold")
	}
	if b.Measure < Count || b.Measure > DistinctDays {
		return fault.Field(path+".measure", "unknown measure")
	}
	if b.Measure != Count && b.Measure != DistinctDays && b.Property == "" {
		return fault.Field(path+".measure_property", "required for this measure")
	}
	if b.Comparator < Equal || b.Comparator > Between {
		return fault.Field(path+".comparator", "unknown comparator")
	}
	if math.IsNaN(b.Threshold) || math.IsInf(b.Threshold, 0) || math.IsNaN(b.High) || math.IsInf(b.High, 0) {
		return fault.Field(path+".threshold", "must be a finite number")
	}
	if b.Comparator == Between && b.High < b.Threshold {
		return fault.Field(path+".threshold_high", "must not be below threshold")
	}
	if b.Span.From > b.Span.To {
		return fault.Field(path+".window", "the start must be before the end, and not after as_of")
	}
	return nil
}

// allowed are the operators of each type beside IsSet and IsNotSet.
var allowed = map[Type][]Operator{
	String:   {Equals, NotEquals, Contains, NotContains, StartsWith, EndsWith},
	Number:   {Equals, NotEquals, GreaterThan, AtLeast, LessThan, AtMost, InRange},
	Bool:     {Equals, NotEquals},
	Datetime: {Equals, NotEquals, GreaterThan, AtLeast, LessThan, AtMost, InRange, WithinLast},
	List:     {AnyOf, AllOf},
}

func (f *Filter) validate(path string) error {
	if f.Property == "" {
		return fault.Field(path+".property", "required")
	}
	ops, ok := allowed[f.Type]
	if !ok {
		return fault.Field(path+".type", "unknown property type")
	}
	if f.Op == IsSet || f.Op == IsNotSet {
		if len(f.Operands) > 0 {
			return fault.Field(path+".operands", "this operator takes none")
		}
		return nil
	}
	if !slices.Contains(ops, f.Op) {
		return fault.Field(path+".operator", "does not go with this type")
	}
	switch {
	case f.Op == WithinLast:
		if f.Within <= 0 || len(f.Operands) > 0 {
			return fault.Field(path+".within", "must be a positive duration, without operands")
		}
		return nil
	case f.Op == InRange && len(f.Operands) != 2:
		return fault.Field(path+".operands", "two are needed")
	case f.Op >= GreaterThan && f.Op <= AtMost && len(f.Operands) != 1:
		return fault.Field(path+".operands", "one is needed")
	case len(f.Operands) == 0:
		return fault.Field(path+".operands", "at least one is needed")
	}
	for i, o := range f.Operands {
		if f.Type != List && o.Type != f.Type {
			return fault.Field(path+".operands["+strconv.Itoa(i)+"]", "must be of the filter's type")
		}
	}
	return nil
}
