package cohort

import (
	"encoding/json"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// Canonical is a definition's one JSON form: names as in the contract, sorted, no
// spaces, defaults written out. Two definitions that say the same in the same order
// have the same form. It expects a valid one.
func Canonical(e *typev1.Expression) []byte {
	full := proto.CloneOf(e)
	walk("", full, func(_ string, e *typev1.Expression) {
		if b := e.GetBehavior(); b != nil && !b.GetFirstTime() {
			if b.GetMeasure() == 0 {
				b.Measure = typev1.Measure_MEASURE_COUNT
			}
			if b.GetComparator() == 0 {
				b.Comparator = typev1.Comparator_COMPARATOR_GREATER_OR_EQUAL
			}
			b.Threshold = proto.Float64(threshold(b))
		}
		if b := e.GetBehavior(); b != nil {
			b.Window = fullWindow(b.GetWindow())
		}
		if s := e.GetSequence(); s != nil {
			s.Window = fullWindow(s.GetWindow())
		}
	})
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(full)
	if err != nil {
		return nil // text that is no UTF-8; Validate refuses it
	}
	var v any
	if json.Unmarshal(b, &v) != nil {
		return nil
	}
	out, err := json.Marshal(v) // sorts names
	if err != nil {
		return nil
	}
	return out
}

func fullWindow(w *typev1.Window) *typev1.Window {
	if w.GetSpan() == nil {
		return &typev1.Window{Span: &typev1.Window_AllTime{AllTime: true}}
	}
	return w
}
