// Package profile holds the eight profile operations of Mixpanel's /engage, on
// properties kept as the JSON they were written in.
package profile

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
)

// Limits of one profile.
const (
	// MaxProperties is the number of properties; further additions fail.
	MaxProperties = 2000
	// MaxNested is the size in bytes of a list or object value.
	MaxNested = 256 << 10
	// MaxListLength bounds the elements of a list property.
	MaxListLength = 100_000
)

// LastSeen is the property every write sets, unless told not to.
const LastSeen = "$last_seen"

// Properties are a profile's properties: name to JSON value.
type Properties map[string]jsontext.Value

// Parse reads properties from a JSON object.
func Parse(b []byte) (Properties, error) {
	p := Properties{}
	if len(b) == 0 {
		return p, nil
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(b), event.Options...)
	if t, err := dec.ReadToken(); err != nil || t.Kind() != '{' {
		return nil, errors.Join(errNoObject, err)
	}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, err
		}
		key := name.String()
		v, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		p[key] = v.Clone()
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errNoObject
	}
	return p, nil
}

var errNoObject = errors.New("not one JSON object")

// JSON writes the properties as an object with sorted names.
func (p Properties) JSON() []byte {
	b := []byte{'{'}
	for _, k := range slices.Sorted(maps.Keys(p)) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, k) // names were checked to be UTF-8
		b = append(b, ':')
		b = append(b, p[k]...)
	}
	return append(b, '}')
}

// ID reads a property that holds a partner's id: a string, or a number by its
// decimal text. set is false when it is absent, null or the empty string; a value
// that is set but no text or number reads as "".
func (p Properties) ID(name string) (id string, set bool) {
	v := p[name]
	switch v.Kind() {
	case '"':
		b, err := jsontext.AppendUnquote(nil, v)
		return string(b), err != nil || len(b) > 0
	case '0':
		return decimal(v), true
	default:
		return "", len(v) > 0 && v.Kind() != 'n'
	}
}

// decimal writes integers in full, other numbers in their shortest form.
func decimal(v jsontext.Value) string {
	if !bytes.ContainsAny(v, ".eE") && string(v) != "-0" {
		return string(v)
	}
	f, err := strconv.ParseFloat(string(v), 64)
	switch {
	case err != nil:
		return ""
	case f == 0:
		return "0"
	case f == math.Trunc(f):
		return strconv.FormatFloat(f, 'f', -1, 64)
	default:
		return string(jsontext.AppendFloat(nil, f, 64))
	}
}

// Property is one name and value of an operation.
type Property struct {
	// Name is the property.
	Name string
	// Value is its JSON.
	Value jsontext.Value
}

// Update is the operations on one profile.
type Update struct {
	// Index is the position in the request, from 0.
	Index int
	// Token is the project token it carried.
	Token string
	// DistinctID is the user's id, for groups empty.
	DistinctID string
	// GroupKey and GroupID name a group, for users empty.
	GroupKey, GroupID string
	// Set, SetOnce, Add, Append, Union, Remove and Unset are the operations,
	// applied in the order unset, set, set_once, add, append, union, remove.
	Set, SetOnce, Add, Append, Union, Remove []Property
	Unset                                    []string
	// Delete removes the profile; then nothing else is applied.
	Delete bool
	// IgnoreTime leaves LastSeen alone; IgnoreAlias takes DistinctID literally.
	IgnoreTime, IgnoreAlias bool
}

// Fail makes a failure of one field of u.
func (u *Update) Fail(field, reason string) *event.Failure {
	return &event.Failure{Index: u.Index, Field: field, Message: "'" + field + "' is invalid: " + reason}
}

// Creates reports whether the update makes a profile that does not exist yet: not
// when all it asks for is refused.
func (u *Update) Creates() bool {
	switch {
	case u.Delete:
		return false
	case len(u.Set)+len(u.SetOnce)+len(u.Append) > 0:
		return true
	default:
		return slices.ContainsFunc(u.Add, func(p Property) bool { _, why := add(nil, p.Value); return why == "" }) ||
			slices.ContainsFunc(u.Union, func(p Property) bool { _, why := union(nil, p.Value); return why == "" })
	}
}

// Writes reports whether the update sets a property.
func (u *Update) Writes(name string) bool {
	is := func(p Property) bool { return p.Name == name }
	return slices.ContainsFunc(u.Set, is) || slices.ContainsFunc(u.SetOnce, is)
}

// Empty reports whether there is no operation.
func (u *Update) Empty() bool {
	return !u.Delete && len(u.Set)+len(u.SetOnce)+len(u.Add)+len(u.Append)+len(u.Union)+len(u.Remove)+len(u.Unset) == 0
}

// Apply changes p by the update's operations other than Delete. A property that
// can't be changed as asked (another type, a limit) is left as it is and
// reported; the others are applied. changed says whether p differs now.
func (u *Update) Apply(p Properties, now time.Time) (changed bool, failures []*event.Failure) {
	for _, name := range u.Unset {
		if _, ok := p[name]; ok {
			delete(p, name)
			changed = true
		}
	}
	put := func(op, name string, v jsontext.Value) {
		old, ok := p[name]
		if !ok && len(p) >= MaxProperties {
			failures = append(failures, u.Fail(op+"."+name, "the profile has 2000 properties already"))
			return
		}
		if len(v) > MaxNested {
			failures = append(failures, u.Fail(op+"."+name, "must be at most 256 KB as JSON"))
			return
		}
		if !ok || !bytes.Equal(old, v) {
			p[name] = v
			changed = true
		}
	}
	for _, a := range u.Set {
		put("$set", a.Name, a.Value)
	}
	for _, a := range u.SetOnce {
		if _, ok := p[a.Name]; !ok {
			put("$set_once", a.Name, a.Value)
		}
	}
	step := func(op string, list []Property, f func(old, v jsontext.Value) (jsontext.Value, string)) {
		for _, a := range list {
			old, there := p[a.Name]
			if there && old.Kind() == 'n' {
				old = nil // null counts as absent
			}
			v, why := f(old, a.Value)
			switch {
			case why != "":
				failures = append(failures, u.Fail(op+"."+a.Name, why))
			case v != nil:
				put(op, a.Name, v)
			}
		}
	}
	step("$add", u.Add, add)
	step("$append", u.Append, appendValue)
	step("$union", u.Union, union)
	step("$remove", u.Remove, remove)
	if (changed || len(failures) == 0) && !u.IgnoreTime && len(p) > 0 {
		v, _ := jsontext.AppendQuote(nil, now.UTC().Format("2006-01-02T15:04:05"))
		changed = changed || !bytes.Equal(p[LastSeen], v)
		p[LastSeen] = v
	}
	return changed, failures
}

func add(old, v jsontext.Value) (jsontext.Value, string) {
	if v.Kind() != '0' {
		return nil, "must be a number"
	}
	if old == nil {
		return v, ""
	}
	if old.Kind() != '0' {
		return nil, "the property is not a number"
	}
	a, err1 := strconv.ParseInt(string(old), 10, 64)
	b, err2 := strconv.ParseInt(string(v), 10, 64)
	if err1 == nil && err2 == nil {
		if c := a + b; (c > a) == (b > 0) {
			return strconv.AppendInt(nil, c, 10), ""
		}
	}
	x, err1 := strconv.ParseFloat(string(old), 64)
	y, err2 := strconv.ParseFloat(string(v), 64)
	if err1 != nil || err2 != nil || x+y > 1.7e308 || x+y < -1.7e308 {
		return nil, event.OutOfRange
	}
	return jsontext.AppendFloat(nil, x+y, 64), ""
}

func appendValue(old, v jsontext.Value) (jsontext.Value, string) {
	if old == nil {
		return slices.Concat([]byte{'['}, v, []byte{']'}), ""
	}
	list, why := elements(old)
	if why != "" {
		return nil, why
	}
	return join(append(list, v))
}

func union(old, v jsontext.Value) (jsontext.Value, string) {
	add := []jsontext.Value{v}
	if v.Kind() == '[' {
		add, _ = elements(v)
	}
	var list []jsontext.Value
	if old != nil {
		var why string
		if list, why = elements(old); why != "" {
			return nil, why
		}
	}
	n := len(list)
	for _, x := range add {
		if k := x.Kind(); k != '"' && k != '0' {
			return nil, "only strings and numbers"
		}
		if !slices.ContainsFunc(list, func(y jsontext.Value) bool { return Equal(x, y) }) {
			list = append(list, x)
		}
	}
	if old != nil && len(list) == n {
		return nil, ""
	}
	return join(list)
}

func remove(old, v jsontext.Value) (jsontext.Value, string) {
	if k := v.Kind(); k == '[' || k == '{' {
		return nil, "must be a single value"
	}
	if old == nil {
		return nil, ""
	}
	list, why := elements(old)
	if why != "" {
		return nil, why
	}
	n := len(list)
	list = slices.DeleteFunc(list, func(x jsontext.Value) bool { return Equal(x, v) })
	if len(list) == n {
		return nil, ""
	}
	return join(list)
}

func elements(v jsontext.Value) ([]jsontext.Value, string) {
	if v.Kind() != '[' {
		return nil, "the property is not a list"
	}
	var out []jsontext.Value
	dec := jsontext.NewDecoder(bytes.NewBuffer(v), event.Options...)
	if _, err := dec.ReadToken(); err != nil {
		return nil, "not a list"
	}
	for dec.PeekKind() != ']' {
		e, err := dec.ReadValue()
		if err != nil {
			return nil, "not a list"
		}
		out = append(out, e.Clone())
	}
	return out, ""
}

func join(list []jsontext.Value) (jsontext.Value, string) {
	if len(list) > MaxListLength {
		return nil, "the list is too long"
	}
	b := []byte{'['}
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, v...)
	}
	return append(b, ']'), ""
}

// Equal compares two JSON values: texts by their characters, numbers by their
// value, others by their bytes.
func Equal(a, b jsontext.Value) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if a.Kind() != b.Kind() {
		return false
	}
	switch a.Kind() {
	case '"':
		x, err1 := jsontext.AppendUnquote(nil, a)
		y, err2 := jsontext.AppendUnquote(nil, b)
		return err1 == nil && err2 == nil && bytes.Equal(x, y)
	case '0':
		x, err1 := strconv.ParseFloat(string(a), 64)
		y, err2 := strconv.ParseFloat(string(b), 64)
		return err1 == nil && err2 == nil && x == y
	default:
		return false
	}
}

// clean copies a value as it is stored: compact, texts cut to 255 characters.
func clean(v jsontext.Value) (jsontext.Value, string) {
	if !utf8.Valid(v) {
		return nil, event.NotUTF8
	}
	switch v.Kind() {
	case '"':
		if len(v)-2 > event.MaxText {
			b, err := jsontext.AppendUnquote(nil, v)
			if err != nil {
				return nil, "not a valid string"
			}
			q, _ := jsontext.AppendQuote(nil, event.Cut(b))
			return q, ""
		}
	case '{', '[':
		if len(v) > MaxNested {
			return nil, "must be at most 256 KB as JSON"
		}
		width := event.MaxProperties
		if v.Kind() == '[' {
			width = MaxListLength // the list itself is bounded by its size
		}
		if why := event.CheckNested(v, event.MaxDepth, width); why != "" {
			return nil, why
		}
		c := v.Clone()
		if err := c.Compact(); err != nil {
			return nil, "not valid JSON"
		}
		return c, ""
	case '0':
		if _, err := strconv.ParseFloat(string(v), 64); err != nil {
			return nil, event.OutOfRange
		}
	default: // true, false, null
	}
	return v.Clone(), ""
}

// Elements returns the elements of a list value, nil for any other value.
func Elements(v jsontext.Value) []jsontext.Value {
	list, _ := elements(v)
	return list
}
