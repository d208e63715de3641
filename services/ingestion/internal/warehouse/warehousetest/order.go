package warehousetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/leaf"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
)

const second = 1000

// history stores one user's events: a letter is an event's name, its place the
// second it happened in; a dot is a second without one, letters in brackets happen
// in the same second.
func (f *fixture) history(user uint64, events string) {
	f.Helper()
	at, same := base-1000*second, false
	for _, c := range events {
		switch c {
		case '[':
			same = true
			continue
		case ']':
			same = false
		case '.':
		default:
			f.append(f.row(user, string(c), at, fmt.Sprintf(`{"user":%d,"at":%d}`, user, (at-base)/second+1000)))
		}
		if !same {
			at += second
		}
	}
}

func at(s int64) int64 { return base - 1000*second + s*second }

func firstTime(t *testing.T, open Open) {
	f := begin(t, open)
	f.history(1, "A")
	f.history(2, "..A.A")
	f.history(3, "A.A")
	f.history(4, "..[AA].")
	f.history(5, "B.A")
	f.history(6, "..........A")
	f.apply(ledger.Change{UserNo: 7, Canonical: 8}) // 7's A was 8's first
	f.history(7, "A")
	f.history(8, "..A")
	since := func(from, to int64, names ...string) leaf.Leaf {
		return leaf.Leaf{Behavior: &leaf.Behavior{Events: names, Measure: leaf.Count, Comparator: leaf.GreaterOrEqual, Threshold: 1, Span: leaf.Span{From: from, To: to}, FirstTime: true}}
	}
	f.want("first ever", since(0, base+1, "A"), "1 2 3 4 5 6 8")
	f.want("first in the window", since(at(2), at(3), "A"), "2 4 5")
	f.want("the window's end is open", since(at(1), at(2), "A"), "")
	f.want("the first of either", since(at(2), base+1, "A", "B"), "2 4 6")
	filtered := since(0, base+1, "A")
	filtered.Behavior.Filters = []leaf.Filter{{Property: "at", Type: leaf.Number, Op: leaf.Equals, Operands: []leaf.Operand{number(2)}}}
	f.want("filters look at the first alone", filtered, "2 4 5")
	f.append(f.row(9, "A", at(0), `{"at":0}`), f.row(9, "A", at(0), `{"at":2}`))
	f.want("of events at the same instant each is the first", filtered, "2 4 5 9")
}

func steps(names ...string) leaf.Leaf {
	s := &leaf.Sequence{Span: leaf.Span{To: base + 1}, AsOfMS: base}
	for _, n := range names {
		step := leaf.Step{Events: []string{n}}
		if n[0] == '!' {
			step = leaf.Step{Events: []string{n[1:]}, DidNot: true}
		}
		s.Steps = append(s.Steps, step)
	}
	return leaf.Leaf{Sequence: s}
}

func within(l leaf.Leaf, d time.Duration) leaf.Leaf {
	l.Sequence.Within = d
	return l
}

func sequences(t *testing.T, open Open) {
	f := begin(t, open)
	for user, events := range map[uint64]string{
		1: "A.B", 2: "B.A", 3: "[AB]", 4: "A", 5: "B", 6: "A....B", 7: "B.A.B", 8: "A.A.B", 9: "A.B.C", 10: "A.C.B", 11: "A.B.C.B", 12: "A.C", 13: "C.A.B",
	} {
		f.history(user, events)
	}
	f.history(20, "A") // 20 became 21
	f.history(21, "..B")
	f.apply(ledger.Change{UserNo: 20, Canonical: 21})
	f.append(f.row(30, "A", base-second, `{}`), f.row(30, "B", base+second, `{}`)) // after as_of
	f.append(f.row(0, "A", at(0), `{}`), f.row(0, "B", at(1), `{}`))               // nobody

	f.want("A then B", steps("A", "B"), "1 6 7 8 9 10 11 13 21")
	f.want("A then A", steps("A", "A"), "8")
	f.want("A then B within 2 s", within(steps("A", "B"), 2*time.Second), "1 7 8 9 11 13 21")
	f.want("A then B within less", within(steps("A", "B"), 2*time.Second-time.Millisecond), "")
	f.want("A then B then C", steps("A", "B", "C"), "9 11")
	f.want("A then C then B", steps("A", "C", "B"), "10 11")
	f.want("A then B then C within 3 s", within(steps("A", "B", "C"), 3*time.Second), "")
	f.want("A then B then C within 4 s", within(steps("A", "B", "C"), 4*time.Second), "9 11")
	f.want("five steps", steps("A", "B", "C", "B", "B"), "")

	f.want("A then not B", steps("A", "!B"), "2 3 4 12 30")
	f.want("A then not B within 2 s", within(steps("A", "!B"), 2*time.Second), "2 3 4 6 8 10 12")
	f.want("A then not B within 4 s", within(steps("A", "!B"), 4*time.Second), "2 3 4 6 12")
	f.want("A then B then not C", steps("A", "B", "!C"), "1 6 7 8 10 11 13 21")
	// 11's second B comes after C, six seconds after A.
	f.want("A then B then not C within 6 s", within(steps("A", "B", "!C"), 6*time.Second), "1 6 7 8 10 11 13 21")
	f.want("A then B then not C within 5 s", within(steps("A", "B", "!C"), 5*time.Second), "1 6 7 8 10 13 21")

	windowed := steps("A", "B")
	windowed.Sequence.Span = leaf.Span{From: at(2), To: at(3)}
	f.want("the first step in the window, the second later", windowed, "7 8 13")
	filtered := steps("A", "B")
	filtered.Sequence.Steps[1].Filters = []leaf.Filter{{Property: "at", Type: leaf.Number, Op: leaf.GreaterThan, Operands: []leaf.Operand{number(3)}}}
	f.want("a filter on the second step", filtered, "6 7 8 10 11 13")
	either := steps("A", "B")
	either.Sequence.Steps[1].Events = []string{"B", "C"}
	f.want("either of two events", either, "1 6 7 8 9 10 11 12 13 21")
}

func sets(t *testing.T, open Open) {
	f := begin(t, open)
	known := func(nos ...uint64) leaf.Leaf { return leaf.Leaf{Users: roaring64.BitmapOf(nos...)} }
	f.want("before any merge", known(1, 2, 3), "1 2 3")
	f.apply(ledger.Change{UserNo: 3, Canonical: 2}, ledger.Change{UserNo: 5, Canonical: 6})
	f.want("those merged stand for whom they became", known(1, 3, 5), "1 2 6")
	f.want("and count once", known(2, 3), "2")
	f.want("nobody", known(), "")
}
