package profile_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
)

// FuzzParse proves that nothing but one object is read as properties, and that
// they are written as they were read.
func FuzzParse(f *testing.F) {
	for _, s := range []string{``, `{}`, `{"a":1}`, `5`, `"x"`, `[]`, `[1,2]`, `["a",1]`, `{"a":1}x`, `{"a":1}{}`, `{"a":`, `{"a":1,"a":2}`, "{\"\xff\":1}", `{"\u0061":1e400}`, ` { "b" : [ 1 ] } `, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := profile.Parse(b)
		if err != nil {
			return
		}
		if v := jsontext.Value(b); len(b) > 0 && (!v.IsValid(event.Options...) || v.Kind() != '{') {
			t.Fatalf("%q is read as %s", b, p.JSON())
		}
		again, err := profile.Parse(p.JSON())
		if err != nil || len(again) != len(p) {
			t.Fatalf("%q is written as %q: %v", b, p.JSON(), err)
		}
		for k, v := range p {
			if string(again[k]) != string(v) {
				t.Fatalf("%q is written as %q", b, p.JSON())
			}
		}
	})
}

// canary is a value that no message may repeat.
const canary = "zoe4711@example.org"

// FuzzUpdate proves that an update that is taken keeps within the limits, that
// $set and $union twice are the same as once, and that no failure repeats a value.
func FuzzUpdate(f *testing.F) {
	for _, s := range []string{
		`{"$distinct_id":"u","$set":{"a":1},"$unset":["b"],"$union":{"l":["x",1]}}`, `{"$distinct_id":"` + canary + `","$set":"` + canary + `"}`,
		`{"$distinct_id":"` + strings.Repeat(canary, 20) + `","$set":{"a":1}}`, `{"$distinct_id":"u","$add":{"a":"` + canary + `"},"$union":{"b":[true,"` + canary + `"]},"$remove":{"c":["` + canary + `"]}}`,
		`{"$distinct_id":"u","$set":{"a":[[[["` + canary + `"]]]]},"$unset":"` + canary + `"}`, `{"$distinct_id":["` + canary + `"]}`, `{"$distinct_id":"u","$set_once":{"a":1e400},"$append":{"a":{"b":null}}}`,
		`{"$distinct_id":"u","$set":{"a":"\ud83d","` + strings.Repeat("k", 300) + `":"` + strings.Repeat("\u00e9", 300) + `"}}`, `{"$group_key":"g","$group_id":7,"$delete":null}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		u, fail := profile.DecodeOne(b, 3)
		check := func(fails ...*event.Failure) {
			for _, x := range fails {
				why, ok := strings.CutPrefix(x.Message, "'"+x.Field+"' is invalid: ")
				if x.Index != 3 || !ok || strings.Contains(why, "4711") || !utf8.ValidString(x.Field) || utf8.RuneCountInString(x.Field) > 9+1+event.MaxText {
					t.Fatalf("%q fails with %+v", b, x)
				}
			}
		}
		if fail != nil {
			check(fail)
			return
		}
		if len(u.DistinctID) > event.MaxText || u.GroupKey == "" && !possible(u.DistinctID) || u.Empty() {
			t.Fatalf("%q is taken as %+v", b, u)
		}
		p := profile.Properties{"l": jsontext.Value(`["x"]`), "a": jsontext.Value(`1`)}
		_, fails := u.Apply(p, time.Unix(1, 0))
		check(fails...)
		limits(t, b, p)
		// The same $set or $union again has nothing left to do.
		if len(u.Add)+len(u.Append)+len(u.Unset)+len(u.Remove) == 0 && (len(u.Set) == 0 || len(u.Union) == 0) {
			before := string(p.JSON())
			u.Apply(p, time.Unix(1, 0))
			if after := string(p.JSON()); after != before {
				t.Fatalf("%q twice: %s and %s", b, before, after)
			}
		}
	})
}

func possible(id string) bool { return id != "" && !event.Banned([]byte(id)) && utf8.ValidString(id) }

func limits(t *testing.T, b []byte, p profile.Properties) {
	t.Helper()
	for name, v := range p {
		var x any
		if !utf8.ValidString(name) || utf8.RuneCountInString(name) > event.MaxText || !v.IsValid() || len(v) > profile.MaxNested {
			t.Fatalf("%q makes %q: %q", b, name, v)
		}
		if err := json.Unmarshal(v, &x); err != nil {
			t.Fatalf("%q makes %q: %v", b, v, err)
		}
		if s, ok := x.(string); ok && utf8.RuneCountInString(s) > event.MaxText {
			t.Fatalf("%q makes a text of %d characters", b, utf8.RuneCountInString(s))
		}
	}
}
