package event

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Options are the JSON rules of every body: UTF-8 is checked value by value, so
// that one bad text fails one event and not its batch; repeated names are refused.
var Options = []jsontext.Options{jsontext.AllowInvalidUTF8(true)}

// Lenient also takes repeated names: to look into an event that is refused for them.
var Lenient = []jsontext.Options{jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)}

// Decoder reads events of one request. It is not safe for concurrent use.
type Decoder struct {
	arena    []byte // properties, one object behind the other
	ids      []byte // ids and markers, unquoted
	names    map[string]string
	endpoint []byte // the member every event gets, ready to append; empty for none
	first    int    // where the properties of the event being read begin
	cut      bool   // a name of the event being read was cut
}

// NewDecoder makes a decoder whose arena starts at size bytes.
func NewDecoder(size int) *Decoder {
	return &Decoder{arena: make([]byte, 0, size), ids: make([]byte, 0, 4096), names: map[string]string{}}
}

// Reset makes the decoder ready for the next request, keeping its memory. No
// event of the previous request may be in use. It returns how much that is, in bytes.
func (d *Decoder) Reset() (kept int) {
	d.arena, d.ids, d.endpoint = d.arena[:0], d.ids[:0], d.endpoint[:0]
	if len(d.names) > 4096 {
		clear(d.names)
	}
	return cap(d.arena) + cap(d.ids)
}

// SetHost makes every event of the request carry the host it was sent to, as
// `$mp_api_endpoint`. An empty host or one that is no text is left out.
func (d *Decoder) SetHost(host string) {
	if host == "" || !utf8.ValidString(host) {
		return
	}
	d.endpoint = append(d.endpoint[:0], `"$mp_api_endpoint":`...)
	d.endpoint, _ = jsontext.AppendQuote(d.endpoint, Cut([]byte(host))) // it is valid UTF-8
	d.endpoint = append(d.endpoint, ',')
}

// Decode reads the next value of dec into ev. The error is a syntax error, after
// which dec is of no use; the failure is a fault of this one event.
func (d *Decoder) Decode(dec *jsontext.Decoder, ev *Event) (*Failure, error) {
	if dec.PeekKind() != '{' {
		if err := dec.SkipValue(); err != nil {
			return nil, err
		}
		return ev.Invalid("event", "each element must be an object with event and properties"), nil
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	start := dec.InputOffset() - 1 // of the bracket: a comma before it belongs to the batch
	var fail *Failure
	for dec.PeekKind() != '}' {
		name, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		if bytes.IndexByte(name, '\\') >= 0 {
			name = plain(nil, name)
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
	ev.Size = int(dec.InputOffset() - start)
	switch {
	case fail != nil:
		fail.InsertID = string(ev.InsertID)
	case !ev.hasName:
		fail = ev.Invalid("event", "missing")
	case !ev.hasProps:
		fail = ev.Invalid("properties", "missing")
	case ev.Size >= MaxBytes:
		fail = ev.Invalid("event", "an event must be smaller than 1 MB")
	default:
		fail = d.finish(ev)
	}
	return fail, nil
}

// finish closes the properties, with those that ingestion adds.
func (d *Decoder) finish(ev *Event) *Failure {
	d.arena = append(d.arena, d.endpoint...)
	d.arena = append(d.arena, `"$mp_event_size":`...)
	d.arena = append(strconv.AppendInt(d.arena, int64(ev.Size), 10), '}')
	ev.Props = d.arena[d.first:len(d.arena):len(d.arena)]
	if d.cut && !jsontext.Value(ev.Props).IsValid(Options...) {
		return ev.Invalid("properties", "two names are the same in their first 255 characters; names are cut there")
	}
	return nil
}

// plain writes a name that has escapes in its shortest form, so that a name is
// known however it is spelled.
func plain(dst, name []byte) []byte {
	b, err := jsontext.AppendUnquote(nil, name)
	if err == nil {
		if q, err := jsontext.AppendQuote(dst, b); err == nil {
			return q
		}
	}
	return append(dst, name...) // not UTF-8; refused as it is
}

func (d *Decoder) name(ev *Event, v jsontext.Value) *Failure {
	ev.hasName = true
	if v.Kind() != '"' || len(v) == 2 {
		return ev.Invalid("event", "must be a non-empty string")
	}
	if !utf8.Valid(v) {
		return ev.Invalid("event", NotUTF8)
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
	d.first, d.cut = len(d.arena), false
	d.arena = append(d.arena, '{')
	for dec.PeekKind() != '}' {
		nameStart := len(d.arena)
		name, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		// The name is only valid until the next read: keep it where it will stay.
		if bytes.IndexByte(name, '\\') < 0 {
			d.arena = append(d.arena, name...)
		} else {
			d.arena = plain(d.arena, name)
		}
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
		fail = ev.Invalid("properties", "must have at most 255 properties")
	}
	return fail, nil
}

// keep appends the value behind its name, cutting long texts and names.
func (d *Decoder) keep(nameStart int, val jsontext.Value) {
	if key := d.arena[nameStart:]; len(key)-2 > MaxText {
		if b, err := jsontext.AppendUnquote(nil, key); err == nil {
			d.arena, _ = jsontext.AppendQuote(d.arena[:nameStart], Cut(b)) // what was unquoted quotes
			d.cut = true
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
		var ok bool
		if ev.Token, ok = d.text(val); !ok {
			ev.BadToken = val.Kind() != 'n'
		}
		return false, nil
	case `"ip"`: // a place to look up, never stored
		return false, nil
	case `"$import"`, `"$mp_api_endpoint"`, `"$mp_api_timestamp_ms"`, `"mp_processing_time_ms"`, `"$mp_event_size"`,
		`"$is_reshuffled"`, `"$identity_failure_reason"`, `"$failure_reason"`, `"$failure_description"`:
		return false, nil // ingestion writes these; an export that is sent again has old ones
	case `"` + TraceProperty + `"`: // the same, but it says which event this was
		if val.Kind() == '"' && utf8.Valid(val) {
			ev.Before, _ = d.text(val)
		}
		return false, nil
	case `"distinct_id"`:
		var ok bool
		if ev.DistinctID, ok = d.identifier(val); !ok {
			return false, ev.Invalid("properties.distinct_id", notText(val))
		}
		return false, nil
	case `"$device_id"`:
		var ok bool
		if ev.DeviceID, ok = d.identifier(val); !ok {
			return true, ev.Invalid("properties.$device_id", notText(val))
		}
	case `"$user_id"`:
		var ok bool
		if ev.UserID, ok = d.identifier(val); !ok {
			return true, ev.Invalid("properties.$user_id", notText(val))
		}
	case `"time"`:
		if val.Kind() == 'n' {
			return false, nil // as if it were absent
		}
		ms, ok := ParseTime(val)
		if !ok {
			return false, ev.Invalid("properties.time", "must be given in seconds or milliseconds since the epoch")
		}
		ev.TimeMS, ev.HasTime = ms, true
		return false, nil
	case `"$insert_id"`:
		ev.hasInsert = true
		var ok bool
		if ev.InsertID, ok = d.identifier(val); !ok {
			ev.badInsert = val.Kind() == '"'
		}
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
		return true, ev.Invalid("properties", "a property name is "+NotUTF8)
	}
	return true, nil
}

// fieldName is the property's name for an error text.
func fieldName(key []byte) string {
	b, err := jsontext.AppendUnquote(nil, key)
	if err != nil {
		return longName
	}
	return Path(string(b))
}

// longName stands for a name that is too long for an error text.
const longName = "(long name)"

// Path is the dotted path of names for an error text. Names are the sender's
// vocabulary, not a person's data; overlong ones are left out.
func Path(names ...string) string {
	path := slices.Clone(names)
	for i, n := range path {
		if path[i] = strings.ToValidUTF8(n, "\uFFFD"); len(n) > 64 {
			path[i] = longName
		}
	}
	return strings.Join(path, ".")
}

// NotUTF8 is what is wrong with a text that is not, and the way out.
const NotUTF8 = "not valid UTF-8; send texts encoded as UTF-8"

// notText says why a value is no id.
func notText(v jsontext.Value) string {
	if v.Kind() == '"' {
		return NotUTF8
	}
	return "must be a string"
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
