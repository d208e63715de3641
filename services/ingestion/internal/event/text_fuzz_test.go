package event_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strconv"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
)

// decimal is a number as JSON and people write it.
var decimal = regexp.MustCompile(`^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$`)

// FuzzParseTime proves that a time is a decimal number, that a whole number means
// the same with and without a fraction, and that milliseconds stay as they are.
func FuzzParseTime(f *testing.F) {
	for _, s := range []string{
		`1700000000`, `1700000000.123`, `"1700000000"`, `1700000000123`, `31535999999`, `31536000000`, `-31536000001`, `-5`, `0`, `-0`, `1e9`, `1.7E12`, `1e400`, `""`, `" 1"`,
		`"0x1p4"`, `"0x10"`, `"1_000"`, `"Inf"`, `"NaN"`, `"infinity"`, `"+5"`, `"1e5"`, `9223372036854775807`, `9223372036854775808`, `1000000000000001`, `1e16`, `"\u0031"`, `true`, `null`, `[1]`, `{}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v := jsontext.Value(b)
		if !v.IsValid(jsontext.AllowInvalidUTF8(true)) || v.Kind() == 0 || bytes.TrimSpace(b)[0] != b[0] || bytes.TrimSpace(b)[len(bytes.TrimSpace(b))-1] != b[len(b)-1] {
			return
		}
		ms, ok := event.ParseTime(v)
		if !ok {
			return
		}
		text := string(bytes.Trim(b, `"`))
		if !decimal.MatchString(text) {
			t.Fatalf("%s is taken as %d", b, ms)
		}
		if ms >= 31_536_000_000 {
			if again, ok := event.ParseTime(strconv.AppendInt(nil, ms, 10)); !ok || again != ms {
				t.Fatalf("%s is %d, which is %d", b, ms, again)
			}
		}
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && n < 1<<53 && n > -1<<53 && len(text) < 20 {
			if again, ok := event.ParseTime([]byte(strconv.FormatInt(n, 10) + ".0")); !ok || again != ms {
				t.Fatalf("%s is %d, with a fraction of nothing %d, %v", b, ms, again, ok)
			}
		}
	})
}

// FuzzRepair proves that it changes nothing but halves of surrogate pairs: what a
// strict reader takes stays as it is, and what it leaves a strict reader takes.
func FuzzRepair(f *testing.F) {
	for _, s := range []string{
		`"\ud83d"`, `"\ud83d\ude00"`, `"\uD83D\uDE00\ud83d"`, `"\\ud83d"`, `"\\\ud83d"`, `"\ude00\ud83d"`, `"\ud83d\\ude00"`, `{"\udc00":"\ud800\ud800\udc00"}`, `"\ud8"`, `\ud83d`, `"\ud83d\u0041"`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		out := event.Repair(b)
		if !bytes.Equal(b, before) {
			t.Fatalf("%q was changed in place", before)
		}
		if len(out) != len(b) || !bytes.Equal(event.Repair(out), out) {
			t.Fatalf("%q became %q", b, out)
		}
		lenient := []jsontext.Options{jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)}
		if jsontext.Value(b).IsValid(lenient...) {
			if !jsontext.Value(out).IsValid(lenient...) {
				t.Fatalf("%q is JSON, %q is not", b, out)
			}
			if utf8.Valid(b) && !jsontext.Value(out).IsValid(jsontext.AllowDuplicateNames(true)) {
				t.Fatalf("%q became %q, which no strict reader takes", b, out)
			}
		}
		if jsontext.Value(b).IsValid(jsontext.AllowDuplicateNames(true)) && !bytes.Equal(out, b) {
			t.Fatalf("%q was right and became %q", b, out)
		}
	})
}

// FuzzPut proves that a property is there once, with its value, beside the others.
func FuzzPut(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, `{"$import":false}`, `{"\u0024import":{"x":[1,"}"]},"b":"\""}`, `{"a":{"$import":1}}`, `{"$import":1,"x":"$import"}`} {
		f.Add([]byte(s), "$import")
	}
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		v := jsontext.Value(b)
		if v.Kind() != '{' || !v.IsValid() || !utf8.ValidString(name) || v.Compact() != nil {
			return
		}
		want := map[string]json.RawMessage{}
		if err := json.Unmarshal(v, &want); err != nil {
			return
		}
		out := event.Put(v, name, "true")
		if !jsontext.Value(out).IsValid() {
			t.Fatalf("%s with %q is %s", b, name, out)
		}
		want[name] = json.RawMessage("true")
		got := map[string]json.RawMessage{}
		if err := json.Unmarshal(out, &got); err != nil || len(got) != len(want) {
			t.Fatalf("%s with %q is %s, %v", b, name, out, err)
		}
		for k, x := range want {
			if string(got[k]) != string(x) {
				t.Fatalf("%s with %q is %s", b, name, out)
			}
		}
	})
}
