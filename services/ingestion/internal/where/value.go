package where

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Kind is the type of a value.
type Kind uint8

// The kinds. The zero value of Value is Undefined: a property that is not there,
// and what an operation on the wrong types comes to.
const (
	Undefined Kind = iota
	Null
	Boolean
	Number
	String
	Datetime
	List
	Object
)

// Value is a value of an expression.
type Value struct {
	kind Kind
	flag bool
	// num is a number, or of a datetime the Unix seconds.
	num float64
	// text is a string, or the JSON of an object.
	text string
	list []Value
}

// Kind is the value's type.
func (v Value) Kind() Kind { return v.kind }

// Text makes a string.
func Text(s string) Value { return Value{kind: String, text: s} }

// Num makes a number.
func Num(f float64) Value { return Value{kind: Number, num: f} }

// Bool makes a boolean.
func Bool(b bool) Value { return Value{kind: Boolean, flag: b} }

// Time makes a datetime of Unix milliseconds.
func Time(ms int64) Value { return Value{kind: Datetime, num: float64(ms) / 1000} }

// JSON reads a value as a property holds it. Lists are read whole, objects are
// only told apart by their text.
func JSON(raw jsontext.Value) Value {
	switch raw.Kind() {
	case 'n':
		return Value{kind: Null}
	case 't', 'f':
		return Bool(raw.Kind() == 't')
	case '"':
		b, err := jsontext.AppendUnquote(nil, raw)
		if err != nil {
			return Value{}
		}
		return Text(string(b))
	case '0':
		f, err := strconv.ParseFloat(string(raw), 64)
		if err != nil {
			return Value{}
		}
		return Num(f)
	case '[':
		return jsonList(raw)
	case '{':
		return Value{kind: Object, text: string(raw)}
	default:
		return Value{}
	}
}

func jsonList(raw jsontext.Value) Value {
	v := Value{kind: List}
	dec := jsontext.NewDecoder(strings.NewReader(string(raw)), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if _, err := dec.ReadToken(); err != nil {
		return Value{}
	}
	for dec.PeekKind() != ']' {
		e, err := dec.ReadValue()
		if err != nil {
			return Value{}
		}
		v.list = append(v.list, JSON(e))
	}
	return v
}

// isTrue says whether a row is selected: undefined and all other types do not.
func (v Value) isTrue() bool { return v.kind == Boolean && v.flag }

// defined says whether a property is set; null is not.
func (v Value) defined() bool { return v.kind != Undefined && v.kind != Null }

// equal compares two values; different types are never equal, but that a
// datetime is comparable with what stands for one.
func equal(a, b Value) bool {
	if a, b, ok := asTimes(a, b); ok {
		return a == b
	}
	if a.kind != b.kind {
		return false
	}
	switch a.kind {
	case Boolean:
		return a.flag == b.flag
	case Number, Datetime:
		return a.num == b.num
	case String, Object:
		return a.text == b.text
	case List:
		if len(a.list) != len(b.list) {
			return false
		}
		for i := range a.list {
			if !equal(a.list[i], b.list[i]) {
				return false
			}
		}
		return true
	default: // undefined, null
		return true
	}
}

// compare orders two values of one ordered type: numbers, strings, datetimes.
func compare(a, b Value) (sign int, ok bool) {
	if x, y, times := asTimes(a, b); times {
		return order(x, y), true
	}
	switch {
	case a.kind == Number && b.kind == Number:
		return order(a.num, b.num), true
	case a.kind == String && b.kind == String:
		return strings.Compare(a.text, b.text), true
	default:
		return 0, false
	}
}

func order(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	default:
		return 0
	}
}

// asTimes reads two values as Unix seconds when one of them is a datetime and the
// other can stand for one: a number is Unix seconds, a text an ISO date.
func asTimes(a, b Value) (x, y float64, ok bool) {
	if a.kind != Datetime && b.kind != Datetime {
		return 0, 0, false
	}
	x, okX := seconds(a)
	y, okY := seconds(b)
	return x, y, okX && okY
}

func seconds(v Value) (float64, bool) {
	switch v.kind {
	case Datetime, Number:
		return v.num, true
	case String:
		t, ok := isoTime(v.text)
		return t, ok
	default:
		return 0, false
	}
}

// isoLayouts are the forms of a date in a property
// (https://docs.mixpanel.com/docs/data-structure/property-reference/data-type);
// without a zone it is UTC.
var isoLayouts = []string{"2006-01-02T15:04:05", "2006-01-02T15:04:05Z07:00", "2006-01-02", "2006-01-02 15:04:05"}

func isoTime(s string) (unix float64, ok bool) {
	if len(s) < len(time.DateOnly) || s[4] != '-' {
		return 0, false
	}
	for _, layout := range isoLayouts {
		if t, err := time.Parse(layout, s); err == nil { // a fraction of the second is read too
			return float64(t.UnixMilli()) / 1000, true
		}
	}
	return 0, false
}

// contains is the operator in: a substring, or an element of a list.
func contains(a, b Value) Value {
	switch {
	case b.kind == List:
		for _, e := range b.list {
			if equal(a, e) {
				return Bool(true)
			}
		}
		return Bool(false)
	case a.kind == String && b.kind == String:
		return Bool(strings.Contains(b.text, a.text))
	default:
		return Value{}
	}
}

// The casts (https://developer.mixpanel.com/reference/segmentation-expressions).

func toBoolean(v Value) Value {
	switch v.kind {
	case Boolean:
		return v
	case Undefined, Null:
		return Bool(false)
	case Number:
		return Bool(v.num != 0)
	case String:
		return Bool(v.text != "" && v.text != "false")
	default:
		return Bool(true)
	}
}

func toNumber(v Value) Value {
	switch v.kind {
	case Number:
		return v
	case Datetime:
		return Num(v.num)
	case Boolean:
		if v.flag {
			return Num(1)
		}
		return Num(0)
	case String:
		if f, err := strconv.ParseFloat(strings.TrimSpace(v.text), 64); err == nil && !strings.ContainsAny(v.text, "xXpP_iInN") {
			return Num(f)
		}
		return Value{}
	default:
		return Value{}
	}
}

func toString(v Value) Value {
	switch v.kind {
	case String, Null:
		return v
	case Number:
		return Text(strconv.FormatFloat(v.num, 'f', -1, 64))
	case Boolean:
		return Text(strconv.FormatBool(v.flag))
	case Datetime:
		return Text(time.UnixMilli(int64(math.Round(v.num * 1000))).UTC().Format("2006-01-02T15:04:05"))
	default:
		return Value{}
	}
}

func toDatetime(v Value) Value {
	if s, ok := seconds(v); ok {
		return Value{kind: Datetime, num: s}
	}
	return Value{}
}

func onNumber(v Value, f func(float64) float64) Value {
	if v.kind != Number {
		return Value{}
	}
	return Num(f(v.num))
}

// maxText bounds a joined text; a longer one is undefined.
const maxText = 64 << 10

func arithmetic(op string, a, b Value) Value {
	if op == "+" && a.kind == String && b.kind == String && len(a.text)+len(b.text) <= maxText {
		return Text(a.text + b.text)
	}
	if a.kind != Number || b.kind != Number {
		return Value{}
	}
	switch op {
	case "+":
		return Num(a.num + b.num)
	case "-":
		return Num(a.num - b.num)
	case "*":
		return Num(a.num * b.num)
	}
	if b.num == 0 {
		return Value{}
	}
	if op == "/" {
		return Num(a.num / b.num)
	}
	return Num(math.Mod(a.num, b.num)) // the sign is the dividend's
}
