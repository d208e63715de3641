package ingest

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"sync"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/wire"
)

// sink takes the elements of a payload.
type sink interface {
	// read takes the next value of dec as element i. An error is one of syntax, and
	// then nothing of the element is kept.
	read(dec *jsontext.Decoder, i int) error
	// broken notes that element i can't be read, and why; what read kept of it goes.
	broken(i int, element []byte, why *flaw)
}

// flaw is why an element can't be read.
type flaw struct {
	at  []string // the names from the element down to the fault; none for the element itself
	why string
}

// each hands all elements of a payload to s. An element that can't be read fails
// alone when it is a line of NDJSON, repeats a name, or is nested too deep to be
// read; other broken JSON refuses the payload.
func each(payload *wire.Payload, s sink) error {
	if payload.Lines {
		return lines(payload.JSON, s)
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(payload.JSON), event.Options...)
	if dec.PeekKind() != '[' {
		if err := s.read(dec, 0); err != nil {
			return rest(payload.JSON, 0, 0, s, false)
		}
	} else {
		if _, err := dec.ReadToken(); err != nil {
			return syntax(dec, 0, err)
		}
		for i := 0; ; i++ {
			at := dec.InputOffset()
			if dec.PeekKind() == ']' {
				break
			}
			if i == event.MaxBatch {
				return wire.TooMany(event.MaxBatch)
			}
			if err := s.read(dec, i); err != nil {
				return rest(payload.JSON, int(at), i, s, true)
			}
		}
		if _, err := dec.ReadToken(); err != nil {
			return syntax(dec, 0, err)
		}
	}
	at := int(dec.InputOffset())
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return trailing(payload.JSON, at)
	}
	return nil
}

var (
	errTrailing = wire.Invalid("the body goes on after its JSON value")
	errLines    = wire.Invalid("the body goes on after its JSON value; one object a line needs Content-Type: application/x-ndjson")
)

// trailing refuses a body that goes on at offset at, behind its value.
func trailing(b []byte, at int) error {
	first, next := skipSpace(b, 0), skipSpace(b, at)
	if b[first] == '{' && next < len(b) && b[next] == '{' {
		return errLines
	}
	return errTrailing
}

func lines(b []byte, s sink) error {
	i := 0
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		if i == event.MaxBatch {
			return wire.TooMany(event.MaxBatch)
		}
		if _, err := alone(line, i, s); err != nil {
			_, depth := span(line)
			why := reason(line, err, depth)
			if why == nil {
				why = &flaw{why: brokenLine(err)}
			}
			s.broken(i, line, why)
		}
		i++
	}
	return nil
}

// alone reads an element that is cut out of its payload.
func alone(b []byte, i int, s sink) (*jsontext.Decoder, error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(b[:len(b):len(b)]), event.Options...)
	if err := s.read(dec, i); err != nil {
		return dec, err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return dec, errTrailing
	}
	return dec, nil
}

// rest goes on where one decoder over the whole payload had to give up: from
// element i at offset at, one element at a time. It is slow, and rarely needed.
func rest(b []byte, at, i int, s sink, array bool) error {
	for p := at; ; i++ {
		p = skipSpace(b, p)
		if i > 0 && array {
			switch {
			case p < len(b) && b[p] == ']':
				if skipSpace(b, p+1) != len(b) {
					return errTrailing
				}
				return nil
			case p >= len(b) || b[p] != ',':
				return wire.InvalidJSON(int64(p), false)
			case i == event.MaxBatch:
				return wire.TooMany(event.MaxBatch)
			}
			p = skipSpace(b, p+1)
		}
		n, depth := span(b[p:])
		dec, err := alone(b[p:p+n], i, s)
		if err != nil {
			why := reason(b[p:p+n], err, depth)
			if why == nil {
				return syntax(dec, p, err)
			}
			s.broken(i, b[p:p+n], why)
		}
		if p += n; !array {
			if skipSpace(b, p) != len(b) {
				return trailing(b, p)
			}
			return nil
		}
	}
}

// readable is the depth from which an element counts as too deep to be read. The
// JSON reader itself stops at 10,000.
const readable = 1000

// reason says why an element alone can't be read, nil when it is broken JSON.
func reason(element []byte, err error, depth int) *flaw {
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return &flaw{place(element, err, 2+event.MaxDepth), "given twice in one object; send it once"}
	case depth > readable:
		return &flaw{place(element, err, 2), event.TooDeep(event.MaxDepth)}
	default:
		return nil
	}
}

// place is the first names, at most n, from an element down to its fault. Two name
// a property; what is nested too deep has thousands.
func place(element []byte, err error, n int) (names []string) {
	s, ok := errors.AsType[*jsontext.SyntacticError](err)
	if !ok || element[0] != '{' { // the places in a list are no names
		return nil
	}
	for name := range s.JSONPointer.Tokens() {
		if names = append(names, name); len(names) == n {
			break
		}
	}
	return names
}

// brokenLine says where a line is broken.
func brokenLine(err error) string {
	if s, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return "not valid JSON near byte " + strconv.FormatInt(s.ByteOffset, 10) + " of the line"
	}
	if errors.Is(err, errTrailing) {
		return "the line goes on after its JSON value; send one event a line"
	}
	return "not valid JSON"
}

func skipSpace(b []byte, p int) int {
	for p < len(b) && (b[p] == ' ' || b[p] == '\t' || b[p] == '\n' || b[p] == '\r') {
		p++
	}
	return p
}

// span measures the value that b begins with by its brackets and quotes alone:
// its length, all of b when it does not end, and its depth.
func span(b []byte) (n, depth int) {
	open := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			open++
			depth = max(depth, open)
		case '}', ']':
			if open == 0 {
				return i, depth
			}
			if open--; open == 0 {
				return i + 1, depth
			}
		case ',':
			if open == 0 {
				return i, depth
			}
		}
	}
	return len(b), depth
}

func syntax(dec *jsontext.Decoder, at int, err error) error {
	if r, ok := errors.AsType[*wire.Refusal](err); ok {
		return r
	}
	return wire.InvalidJSON(int64(at)+dec.InputOffset(), errors.Is(err, jsontext.ErrDuplicateName))
}

// scratch is the memory one request decodes into.
type scratch struct {
	dec      *event.Decoder
	events   []event.Event
	good     []*event.Event
	failures []*event.Failure
}

var scratches = sync.Pool{New: func() any { return &scratch{dec: event.NewDecoder(64 << 10)} }}

// give puts the memory back for the next request.
func (sc *scratch) give() {
	clear(sc.events)
	clear(sc.good)
	sc.events, sc.good, sc.failures = sc.events[:0], sc.good[:0], nil
	if sc.dec.Reset() <= maxKept {
		scratches.Put(sc)
	}
}

// maxKept is the memory of a decoder that is worth keeping: that of an ordinary
// full batch. Larger ones would pile up.
const maxKept = 8 << 20

// read implements sink.
func (sc *scratch) read(dec *jsontext.Decoder, i int) error {
	sc.events = append(sc.events, event.Event{})
	ev := &sc.events[len(sc.events)-1]
	ev.Reset(i)
	f, err := sc.dec.Decode(dec, ev)
	if f != nil {
		sc.failures = append(sc.failures, f)
	}
	if f != nil || err != nil {
		sc.events = sc.events[:len(sc.events)-1]
	}
	return err
}

// broken implements sink.
func (sc *scratch) broken(i int, element []byte, why *flaw) {
	if n := len(sc.events); n > 0 && sc.events[n-1].Index == i {
		sc.events = sc.events[:n-1]
	}
	sc.failures = dropLast(sc.failures, i)
	// The sender finds its event again by the insert id, as far as it can be read.
	ev := &event.Event{Index: i}
	_, _ = sc.dec.Decode(jsontext.NewDecoder(bytes.NewBuffer(element[:len(element):len(element)]), event.Lenient...), ev) // it is broken, that is known
	field := "event"
	if len(why.at) > 0 {
		field = event.Path(why.at...)
	}
	sc.failures = append(sc.failures, ev.Invalid(field, why.why))
}

// dropLast drops the failure of an element that turns out to be broken JSON, so
// that it is reported once.
func dropLast(failures []*event.Failure, index int) []*event.Failure {
	if n := len(failures); n > 0 && failures[n-1].Index == index {
		return failures[:n-1]
	}
	return failures
}
