package event

import (
	"bytes"
	"math"
	"strconv"
	"unicode/utf8"
	"unsafe"

	"github.com/go-json-experiment/json/jsontext"
)

// Options are the JSON rules of every body: UTF-8 is checked value by value, so
// that one bad text fails one event and not its batch; repeated names are refused.
var Options = []jsontext.Options{jsontext.AllowInvalidUTF8(true)}

// Decoder reads events of one request. It is not safe for concurrent use.
type Decoder struct {
	arena []byte // properties, one object behind the other
	ids   []byte // ids and markers, unquoted
	names map[string]string
}

// NewDecoder makes a decoder whose arena starts at size bytes.
func NewDecoder(size int) *Decoder {
	return &Decoder{arena: make([]byte, 0, size), ids: make([]byte, 0, 4096), names: map[string]string{}}
}

// Reset makes the decoder ready for the next request, keeping its memory. No
// event of the previous request may be in use.
func (d *Decoder) Reset() {
	d.arena, d.ids = d.arena[:0], d.ids[:0]
	if len(d.names) > 4096 {
		clear(d.names)
	}
}

// Decode reads the next value of dec into ev. The error is a syntax error, after
// which dec is of no use; the failure is a fault of this one event.
func (d *Decoder) Decode(dec *jsontext.Decoder, ev *Event) (*Failure, error) {
	if dec.PeekKind() != '{' {
		if err := dec.SkipValue(); err != nil {
			return nil, err
		}
		return ev.Invalid("event", "each element must be an object"), nil
	}
	start := dec.InputOffset()
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	var fail *Failure
	for dec.PeekKind() != '}' {
		name, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		var f *Failure
		switch string(name) {
		case `"event"`:
			v, err := dec.ReadValue()
			if err != nil {
				return nil, err
			}
			f = d.name(ev, v)
		case `"properties"`:
			if dec.PeekKind() != '{' {
				if err := dec.SkipValue(); err != nil {
					return nil, err
				}
				f = ev.Invalid("properties", "must be an object")
				ev.hasProps = true
				break
			}
			ev.hasProps = true
			if f, err = d.properties(dec, ev); err != nil {
				return nil, err
			}
		default: // e.g. Python's `meta`
			if err := dec.SkipValue(); err != nil {
				return nil, err
			}
		}
		if fail == nil {
			fail = f
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	switch {
	case fail != nil:
		fail.InsertID = string(ev.InsertID)
	case !ev.hasName:
		fail = ev.Invalid("event", "missing")
	case !ev.hasProps:
		fail = ev.Invalid("properties", "missing")
	case dec.InputOffset()-start >= MaxBytes:
		fail = ev.Invalid("event", "an event must be smaller than 1 MB")
	}
	return fail, nil
}

func (d *Decoder) name(ev *Event, v jsontext.Value) *Failure {
	ev.hasName = true
	if v.Kind() != '"' || len(v) == 2 {
		return ev.Invalid("event", "must be a non-empty string")
	}
	if !utf8.Valid(v) {
		return ev.Invalid("event", "not valid UTF-8")
	}
	raw := v[1 : len(v)-1]
	if len(raw) <= MaxText && bytes.IndexByte(raw, '\\') < 0 {
		if s, ok := d.names[string(raw)]; ok {
			ev.Name = s
			return nil
		}
		ev.Name = string(raw)
		d.names[ev.Name] = ev.Name
		return nil
	}
	b, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return ev.Invalid("event", "not a valid string")
	}
	ev.Name = string(Cut(b))
	return nil
}

func (d *Decoder) properties(dec *jsontext.Decoder, ev *Event) (*Failure, error) {
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	var fail *Failure
	n := 0
	first := len(d.arena)
	d.arena = append(d.arena, '{')
	for dec.PeekKind() != '}' {
		nameStart := len(d.arena)
		name, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		// The name is only valid until the next read: keep it where it will stay.
		d.arena = append(d.arena, name...)
		key := d.arena[nameStart:]
		val, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		n++
		keep, f := d.property(ev, key, val)
		if f != nil && fail == nil {
			fail = f
		}
		if !keep || f != nil {
			d.arena = d.arena[:nameStart]
			continue
		}
		d.keep(nameStart, val)
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	if n > MaxProperties && fail == nil {
		fail = ev.Invalid("properties", "at most 255 properties")
	}
	if d.arena[len(d.arena)-1] == ',' {
		d.arena[len(d.arena)-1] = '}'
	} else {
		d.arena = append(d.arena, '}')
	}
	ev.Props = d.arena[first:len(d.arena):len(d.arena)]
	return fail, nil
}

// keep appends the value behind its name, cutting long texts and names.
func (d *Decoder) keep(nameStart int, val jsontext.Value) {
	if key := d.arena[nameStart:]; len(key)-2 > MaxText {
		if b, err := jsontext.AppendUnquote(nil, key); err == nil {
			d.arena, _ = jsontext.AppendQuote(d.arena[:nameStart], Cut(b)) // what was unquoted quotes
		}
	}
	d.arena = append(d.arena, ':')
	if val.Kind() == '"' && len(val)-2 > MaxText {
		if b, err := jsontext.AppendUnquote(nil, val); err == nil {
			d.arena, _ = jsontext.AppendQuote(d.arena, Cut(b))
			d.arena = append(d.arena, ',')
			return
		}
	}
	d.arena = append(append(d.arena, val...), ',')
}

// property looks at one property; keep says whether it belongs to Props.
func (d *Decoder) property(ev *Event, key []byte, val jsontext.Value) (keep bool, f *Failure) {
	switch string(key) {
	case `"token"`:
		ev.Token, _ = d.text(val)
		return false, nil
	case `"ip"`: // a place to look up, never stored
		return false, nil
	case `"distinct_id"`:
		var ok bool
		if ev.DistinctID, ok = d.identifier(val); !ok {
			return false, ev.Invalid("properties.distinct_id", "must be a string")
		}
		return false, nil
	case `"$device_id"`:
		var ok bool
		if ev.DeviceID, ok = d.identifier(val); !ok {
			return true, ev.Invalid("properties.$device_id", "must be a string")
		}
	case `"$user_id"`:
		var ok bool
		if ev.UserID, ok = d.identifier(val); !ok {
			return true, ev.Invalid("properties.$user_id", "must be a string")
		}
	case `"time"`:
		ms, ok := ParseTime(val)
		if !ok {
			return false, ev.Invalid("properties.time", "must be given in seconds or milliseconds since the epoch")
		}
		ev.TimeMS, ev.HasTime = ms, true
		return false, nil
	case `"$insert_id"`:
		ev.hasInsert = true
		ev.InsertID, _ = d.identifier(val)
		return false, nil
	case `"$source"`:
		ev.Source, _ = d.text(val)
	case `"$partner_id"`:
		ev.PartnerID, _ = d.text(val)
	case `"$ignore"`:
		ev.Ignored = string(val) != "false" && string(val) != `""` && string(val) != "null" && string(val) != "0"
	}
	if why := CheckValue(val); why != "" {
		return true, ev.Invalid("properties."+fieldName(key), why)
	}
	if !utf8.Valid(key) {
		return true, ev.Invalid("properties", "a property name is not valid UTF-8")
	}
	return true, nil
}

// fieldName is the property's name for an error text. Names are the sender's
// vocabulary, not a person's data; overlong ones are cut.
func fieldName(key []byte) string {
	b, err := jsontext.AppendUnquote(nil, key)
	if err != nil || len(b) > 64 {
		return "(long name)"
	}
	return string(b)
}

// CheckValue says what is wrong with a property's value, or "".
func CheckValue(v jsontext.Value) string {
	switch v.Kind() {
	case '"':
		if !utf8.Valid(v) {
			return "not valid UTF-8"
		}
	case '0':
		return checkNumber(v)
	case '{', '[':
		if len(v) > MaxNested {
			return "a list or object must be at most 8 KB"
		}
		if !utf8.Valid(v) {
			return "not valid UTF-8"
		}
		return CheckNested(v, MaxDepth, MaxProperties)
	default: // true, false, null
	}
	return ""
}

func checkNumber(v []byte) string {
	if len(v) < 25 && bytes.IndexByte(v, 'e') < 0 && bytes.IndexByte(v, 'E') < 0 {
		return ""
	}
	if _, err := strconv.ParseFloat(string(v), 64); err != nil {
		return "the number is out of range"
	}
	return ""
}

// CheckNested walks a well-formed object or array and checks its depth, the
// number of keys and elements, and its numbers. It returns what is wrong, or "".
func CheckNested(v []byte, maxDepth, maxWidth int) string {
	var width [8]int
	depth := 0
	for i := 0; i < len(v); i++ {
		switch c := v[i]; c {
		case '"':
			for i++; v[i] != '"'; i++ {
				if v[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			if depth++; depth > maxDepth {
				return "nested deeper than " + strconv.Itoa(maxDepth) + " levels"
			}
			width[depth&7] = 1
		case '}', ']':
			depth--
		case ',':
			if width[depth&7]++; width[depth&7] > maxWidth {
				return "more than " + strconv.Itoa(maxWidth) + " keys or elements"
			}
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			s := i
			for i+1 < len(v) && isNumber(v[i+1]) {
				i++
			}
			if why := checkNumber(v[s : i+1]); why != "" {
				return why
			}
		}
	}
	return ""
}

func isNumber(c byte) bool {
	return c >= '0' && c <= '9' || c == '.' || c == 'e' || c == 'E' || c == '+' || c == '-'
}

// identifier reads an id: a string, or a number or boolean by its JSON text.
func (d *Decoder) identifier(v jsontext.Value) ([]byte, bool) {
	switch v.Kind() {
	case '"':
		return d.text(v)
	case '0', 't', 'f':
		return d.copy(v), true
	case 'n':
		return nil, true
	default:
		return nil, false
	}
}

// text unquotes a string into the ids arena. Growing the arena moves only what
// comes later, so earlier slices stay good.
func (d *Decoder) text(v jsontext.Value) ([]byte, bool) {
	if v.Kind() != '"' || !utf8.Valid(v) {
		return nil, false
	}
	raw := v[1 : len(v)-1]
	if bytes.IndexByte(raw, '\\') < 0 {
		return d.copy(raw), true
	}
	b, err := jsontext.AppendUnquote(nil, v)
	return b, err == nil
}

func (d *Decoder) copy(b []byte) []byte {
	start := len(d.ids)
	d.ids = append(d.ids, b...)
	return d.ids[start:len(d.ids):len(d.ids)]
}

// millisFrom is the value from which a number is milliseconds: as seconds it
// would be the year 2969.
const millisFrom = 31_536_000_000

// ParseTime reads a time in seconds or milliseconds, with or without a fraction,
// as a number or a string of one.
func ParseTime(v jsontext.Value) (ms int64, ok bool) {
	b := []byte(v)
	if v.Kind() == '"' {
		b = b[1 : len(b)-1]
	} else if v.Kind() != '0' {
		return 0, false
	}
	if len(b) == 0 || len(b) > 32 || bytes.ContainsFunc(b, notDecimal) {
		return 0, false
	}
	if n, err := strconv.ParseInt(unsafeString(b), 10, 64); err == nil {
		if n < millisFrom && n > -millisFrom {
			n *= 1000
		}
		return n, true
	}
	f, err := strconv.ParseFloat(unsafeString(b), 64)
	if err != nil || f > 9e18 || f < -9e18 { // what a whole number may be, about
		return 0, false
	}
	if f < millisFrom && f > -millisFrom {
		f *= 1000
	}
	return int64(math.Round(f)), true // so that 1700000000.123 is …123 ms and not …122
}

// notDecimal finds what Go takes in a number and senders don't write: 0x10, 1_000, Inf.
func notDecimal(c rune) bool {
	return (c < '0' || c > '9') && c != '.' && c != '-' && c != '+' && c != 'e' && c != 'E'
}

func unsafeString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Cut shortens text to MaxText characters without splitting one.
func Cut(b []byte) []byte {
	if len(b) <= MaxText {
		return b
	}
	n := 0
	for i := range string(b) {
		if n == MaxText {
			return b[:i]
		}
		n++
	}
	return b
}
