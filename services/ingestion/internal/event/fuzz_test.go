package event_test

import (
	"bytes"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// FuzzDecode proves that whatever is accepted can be stored and read back:
// properties are a JSON object in UTF-8, ids are bounded, the hash is repeatable.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"event":"A","properties":{"time":1700000000,"distinct_id":"u","$insert_id":"i","x":{"a":[1,"b"]}}}`,
		`{"event":"A","properties":{"time":"1700000000.5","$device_id":"d","$user_id":"u","n":1e400}}`,
		`{"event":"é\ud83d","properties":{"":null,"a":"\u0000","b":[[[[]]]]}}`, `{"event":"A","properties":{"distinct_id":"\ud83d","a\udc00":["\\ud83d","\uD83D\ude00","\ud83dx"]}}`, `{"event":1}`, `{}`, `[]`, `{"event":"A","properties":{"a":1,"a":2}}`,
		`{"properties":{"time":-1},"event":""}`, "{\"event\":\"A\",\"properties\":{\"\xff\":\"\xff\"}}",
	} {
		f.Add([]byte(s), uint8(1), true)
	}
	p := &project.Project{ID: 1, Token: "t"}
	f.Fuzz(func(t *testing.T, b []byte, system uint8, strict bool) {
		read := func() (*event.Event, bool) {
			d := event.NewDecoder(len(b))
			ev := &event.Event{Project: p}
			dec := jsontext.NewDecoder(bytes.NewBuffer(event.Repair(bytes.Clone(b))), event.Options...)
			fail, err := d.Decode(dec, ev)
			if err != nil || fail != nil {
				return nil, false
			}
			r := event.Rules{Endpoint: event.Import, Strict: strict, NowMS: 1_800_000_000_000, System: project.IdentitySystem(system%3 + 1)}
			return ev, ev.Finish(&r) == nil
		}
		ev, ok := read()
		if !ok {
			return
		}
		if v := jsontext.Value(ev.Props); v.Kind() != '{' || !v.IsValid() {
			t.Fatalf("properties are not a JSON object: %q", ev.Props)
		}
		if !utf8.ValidString(ev.Name) || !utf8.Valid(ev.Arrival) || len(ev.Arrival) > event.MaxText || ev.Name == "" || utf8.RuneCountInString(ev.Name) > event.MaxText {
			t.Fatalf("name %q, id %q", ev.Name, ev.Arrival)
		}
		if again, ok := read(); !ev.Generated && (!ok || again.Hash != ev.Hash || !bytes.Equal(again.Props, ev.Props)) {
			t.Fatal("reading twice gives two events")
		}
	})
}
