package event

import (
	"bytes"
	"math"
	"strconv"
	"unicode/utf8"
	"unsafe"

	"github.com/go-json-experiment/json/jsontext"
)

// CheckValue says what is wrong with a property's value, or "".
func CheckValue(v jsontext.Value) string {
	switch v.Kind() {
	case '"':
		if !utf8.Valid(v) {
			return NotUTF8
		}
	case '0':
		return checkNumber(v)
	case '{', '[':
		if len(v) > MaxNested {
			return "must be at most 8 KB as JSON"
		}
		if !utf8.Valid(v) {
			return NotUTF8
		}
		return CheckNested(v, MaxDepth, MaxProperties)
	default: // true, false, null
	}
	return ""
}

// OutOfRange is what is wrong with a number that no double can hold.
const OutOfRange = "a number is out of range; the greatest is about 1.8e308"

// TooDeep is what is wrong with a value that is nested deeper than depth levels.
func TooDeep(depth int) string {
	return "must be nested at most " + strconv.Itoa(depth) + " levels deep"
}

func checkNumber(v []byte) string {
	if len(v) < 25 && bytes.IndexByte(v, 'e') < 0 && bytes.IndexByte(v, 'E') < 0 {
		return ""
	}
	if _, err := strconv.ParseFloat(string(v), 64); err != nil {
		return OutOfRange
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
				return TooDeep(maxDepth)
			}
			width[depth&7] = 1
		case '}', ']':
			depth--
		case ',':
			if width[depth&7]++; width[depth&7] > maxWidth {
				return "must have at most " + strconv.Itoa(maxWidth) + " keys or elements"
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
