package ingest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/identity"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ingest"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/sqlledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/wire"
)

// keeping is a warehouse that keeps the last rows it was given.
type keeping struct {
	warehouse.Warehouse
	mu   sync.Mutex
	rows []warehouse.Row
}

func (k *keeping) Append(_ context.Context, rows []warehouse.Row) (warehouse.Appended, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range rows {
		r.Props, r.InsertID, r.Source = bytes.Clone(r.Props), bytes.Clone(r.InsertID), bytes.Clone(r.Source)
		k.rows = append(k.rows, r)
	}
	return warehouse.Appended{Stored: len(rows), Duplicate: make([]bool, len(rows))}, nil
}

func (k *keeping) take() []warehouse.Row {
	k.mu.Lock()
	defer k.mu.Unlock()
	rows := k.rows
	k.rows = nil
	return rows
}

// single knows proj only.
type single struct{}

func (single) ByToken(_ context.Context, token string) (*project.Project, error) {
	if token != proj.Token {
		return nil, fault.New(fault.NotFound, "PROJECT_NOT_FOUND", "no such project")
	}
	return proj, nil
}
func (single) ByID(context.Context, int64) (*project.Project, error) { return proj, nil }
func (single) Authenticate(context.Context, project.Credential) (*project.Project, error) {
	return proj, nil
}

const (
	fuzzNow   = 1_800_000_000_000
	personal  = "zoe4711@example.org" // a value that no message may repeat
	secondsTo = 31_536_000_000
)

type imported struct {
	Code   int `json:"code"`
	Num    int `json:"num_records_imported"`
	Failed []struct {
		Index   int    `json:"index"`
		Field   string `json:"field"`
		Message string `json:"message"`
	} `json:"failed_records"`
}

// FuzzImport proves of any body, array or NDJSON, strict or not: every element is
// stored or reported, once; what is stored is within the limits and is taken again
// as the same event; no message repeats a value.
func FuzzImport(f *testing.F) {
	good := `{"event":"A","properties":{"time":1700000000,"distinct_id":"u","$insert_id":"i1","x":{"a":[1,"b"]},"$source":"s"}}`
	for _, s := range []string{
		good, "[" + good + "," + good + "]", good + "\n\n" + good + "\r\n{\n" + good, "[" + good + ",]", "[" + good + "]x", "[1,[],{},null,\"a\"]", "", "[", "[]", "{}",
		`[{"event":"A","properties":{"time":"` + personal + `","distinct_id":["` + personal + `"],"$insert_id":"` + personal + `"}}]`,
		`[{"event":"` + personal + `","properties":"` + personal + `"}]`, `[{"event":7,"properties":{"a":"` + personal + `"}},{"event":"A","properties":{"x":[[[["` + personal + `"]]]],"$device_id":{"a":"` + personal + `"}}}]`,
		`[{"event":"A","properties":{"time":1,"distinct_id":"` + personal + `"}},{"event":"A","properties":{"time":1900000000,"$insert_id":"i2","distinct_id":"u","$user_id":"null"}}]`,
		"[{\"event\":\"A\\ud83d\",\"properties\":{\"distinct_id\":\"\\ud83d\",\"\\udc00\":\"\xff\",\"n\":1e400,\"a\":\"" + strings.Repeat("é", 300) + "\"}}]",
		`[{"event":"A","properties":{"o":{"` + personal + `":1,"` + personal + `":"` + personal + `"}}},{"event":"A","properties":{"l":[[[[[` + strings.Repeat(`{"`+personal+`":[`, 600) + `]]]]]}}]`,
		`[{"event":"A","event":"B","properties":{"a":1,"a":2,"$ignore":true}},` + good + `]`, "{\"event\":\"A\",\"properties\":{\"time\":1.7e9,\"$device_id\":\"d\",\"$user_id\":\"u\"}}\n{\"a\":1,\"a\":2}\n[]",
	} {
		f.Add([]byte(s), true, true)
		f.Add([]byte(s), false, false)
		f.Add([]byte(s), true, false)
	}
	l, err := sqlledger.Open(context.Background(), "sqlite:"+filepath.Join(f.TempDir(), "ledger.db"))
	if err != nil {
		f.Fatal(err)
	}
	rules, err := mtu.Load()
	if err != nil {
		f.Fatal(err)
	}
	now := func() time.Time { return time.UnixMilli(fuzzNow) }
	systems := ingest.NewSystems(l)
	resolver := identity.NewResolver(l, identity.NewCache(1000), now)
	w := &keeping{}
	p := ingest.NewPipeline(ingest.PipelineConfig{GroupWait: time.Millisecond, MaxGroup: 10_000, QueueDepth: 100_000}, w, resolver, rules, systems.Of)
	f.Cleanup(func() {
		p.Close()
		_ = l.Close()
	})
	in := ingest.NewIngester(&ingest.Deps{Registry: single{}, Pipeline: p, Ledger: l, Resolver: resolver, Systems: systems, Limits: wire.Limits{Body: 1 << 20, Decompressed: 1 << 20}, Now: now})
	send := func(t *testing.T, body []byte, lines, strict bool) (*imported, []warehouse.Row) {
		t.Helper()
		r := &wire.Request{Endpoint: wire.Import, Method: "POST", ContentType: "application/json", Authorization: "Basic cm9ib3Q6aHVzaA==", RawQuery: "strict=0", Body: body}
		if lines {
			r.ContentType = "application/x-ndjson"
		}
		if strict {
			r.RawQuery = "strict=1"
		}
		resp := in.Raw(context.Background(), r)
		a := &imported{}
		if err := json.Unmarshal(resp.Body, a); err != nil || a.Code != resp.Status || a.Code != 200 && a.Code != 400 && a.Code != 413 {
			t.Fatalf("%d %s: %v", resp.Status, resp.Body, err)
		}
		return a, w.take()
	}
	f.Fuzz(func(t *testing.T, body []byte, lines, strict bool) {
		a, rows := send(t, body, lines, strict)
		if n := elements(body, lines); n >= 0 && strict && a.Code != 413 {
			if a.Num+len(a.Failed) != n && a.Num+len(a.Failed) != 0 {
				t.Fatalf("%d elements, %d stored and %d failed", n, a.Num, len(a.Failed))
			}
			for i, x := range a.Failed {
				if x.Index < 0 || x.Index >= n || i > 0 && x.Index <= a.Failed[i-1].Index {
					t.Fatalf("failed records %+v of %d", a.Failed, n)
				}
			}
		}
		for _, x := range a.Failed {
			if why, ok := strings.CutPrefix(x.Message, "'"+x.Field+"' is invalid: "); !ok || strings.Contains(why, "4711") || strings.Contains(nameless(x.Field, body), "4711") || len(x.Field) > 6*65 {
				t.Fatalf("%+v", x)
			}
		}
		if len(rows) > a.Num {
			t.Fatalf("%d rows, %d imported", len(rows), a.Num)
		}
		for i := range rows {
			stored(t, &rows[i], strict)
			again, ok := write(&rows[i])
			if !ok {
				continue
			}
			b, twice := send(t, again, false, false)
			if len(twice) != 1 || b.Num != 1 || twice[0].Name != rows[i].Name || twice[0].TimeMS != rows[i].TimeMS || !bytes.Equal(twice[0].InsertID, rows[i].InsertID) || !bytes.Equal(sizeless(twice[0].Props), sizeless(rows[i].Props)) {
				t.Fatalf("%s is stored as %+v, sent again as %+v %+v", again, rows[i], b, twice)
			}
		}
	})
}

var name = regexp.MustCompile(`"([^"\\]*4711[^"\\]*)"\s*:`)

// nameless is a field without the names that the body has: they are no values.
func nameless(field string, body []byte) string {
	for _, m := range name.FindAllSubmatch(body, -1) {
		field = strings.ReplaceAll(field, string(m[1]), "")
	}
	return field
}

var size = regexp.MustCompile(`"\$mp_event_size":[0-9]+`)

// sizeless is a stored event's properties without the size it was sent with.
func sizeless(props []byte) []byte { return size.ReplaceAll(props, nil) }

// elements counts what a body has, -1 when it is broken as a whole.
func elements(body []byte, lines bool) int {
	if lines {
		n := 0
		for line := range bytes.Lines(body) {
			if len(bytes.TrimSpace(line)) > 0 {
				n++
			}
		}
		return n
	}
	v := jsontext.Value(event.Repair(body))
	if !v.IsValid(jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)) {
		return -1
	}
	if v.Kind() != '[' {
		return 1
	}
	var list []json.RawMessage
	if json.Unmarshal(v, &list) != nil {
		return -1
	}
	return len(list)
}

// stored checks the limits of a row.
func stored(t *testing.T, r *warehouse.Row, strict bool) {
	t.Helper()
	v := jsontext.Value(r.Props)
	if v.Kind() != '{' || !v.IsValid() {
		t.Fatalf("properties %q", r.Props)
	}
	if !utf8.ValidString(r.Name) || r.Name == "" || utf8.RuneCountInString(r.Name) > event.MaxText {
		t.Fatalf("name %q", r.Name)
	}
	if r.TimeMS < secondsTo || r.TimeMS > fuzzNow || r.ReceivedMS != fuzzNow || len(r.InsertID) == 0 || len(r.InsertID) > event.MaxInsertID || !utf8.Valid(r.InsertID) || !utf8.Valid(r.Source) {
		t.Fatalf("row %+v", r)
	}
	if strict && r.Flags&warehouse.FlagGenerated != 0 {
		t.Fatalf("a generated id in strict mode: %+v", r)
	}
	var props map[string]json.RawMessage
	if err := json.Unmarshal(r.Props, &props); err != nil || len(props) > event.MaxProperties {
		t.Fatalf("%d properties, %v", len(props), err)
	}
	for k, x := range props {
		var s string
		if utf8.RuneCountInString(k) > event.MaxText || x[0] == '"' && (json.Unmarshal(x, &s) != nil || utf8.RuneCountInString(s) > event.MaxText) || x[0] != '"' && len(x) > event.MaxNested {
			t.Fatalf("property %q: %s", k, x)
		}
	}
}

// write makes an event of a row; not when it would be taken otherwise for a reason.
func write(r *warehouse.Row) ([]byte, bool) {
	if r.Flags&warehouse.FlagGenerated != 0 || bytes.Contains(r.Props, []byte("$identity_failure_reason")) {
		return nil, false
	}
	name, err1 := jsontext.AppendQuote(nil, r.Name)
	insert, err2 := jsontext.AppendQuote(nil, r.InsertID)
	if err1 != nil || err2 != nil {
		return nil, false
	}
	props := string(r.Props[1:])
	if props != "}" {
		props = "," + props
	}
	b, err := json.Marshal(r.TimeMS)
	return []byte(`{"event":` + string(name) + `,"properties":{"time":` + string(b) + `,"$insert_id":` + string(insert) + `,"distinct_id":""` + props + `}`), err == nil
}
