package wire_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/wire"
)

// FuzzForms proves that data is the same in whatever form it travels: as it is,
// compressed, as a form field in base64 with and without escapes, in the query.
func FuzzForms(f *testing.F) {
	for _, s := range []string{`[{"a":1}]`, `{"a":"+/=&% \ud83d"}`, ` [1]`, `[`, `{"\u00e9":"~~~???>>>"}`, "[\"\xff\"]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		// An array or object. Bytes that end in '>' or '~' end in '+' as base64, which
		// an unescaped form can't tell from a space; no JSON does.
		trimmed := bytes.Trim(data, " \t\r\n")
		if len(trimmed) < 2 || trimmed[0] != '[' && trimmed[0] != '{' || trimmed[len(trimmed)-1] != ']' && trimmed[len(trimmed)-1] != '}' {
			return
		}
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		b64 := base64.StdEncoding.EncodeToString(data)
		form := "application/x-www-form-urlencoded"
		for name, r := range map[string]*wire.Request{
			"as it is":      {Method: "POST", ContentType: "application/json", Body: data},
			"untyped":       {Method: "POST", Body: data},
			"gzip":          {Method: "POST", ContentType: "application/json", ContentEncoding: "gzip", Body: packed.Bytes()},
			"form, base64":  {Method: "POST", ContentType: form, Body: []byte("verbose=1&data=" + url.QueryEscape(b64))},
			"as Node sends": {Method: "POST", ContentType: form, Body: []byte("data=" + b64)},
			"without =":     {Method: "POST", ContentType: form, Body: []byte("data=" + strings.TrimRight(b64, "="))},
			"form, JSON":    {Method: "POST", ContentType: form, Body: []byte("data=" + url.QueryEscape(string(data)))},
			"query":         {Method: "GET", RawQuery: "data=" + url.QueryEscape(b64)},
			"beacon":        {Method: "POST", ContentType: "text/plain;charset=UTF-8", Body: []byte("data=" + url.QueryEscape(b64))},
		} {
			r.Endpoint = wire.Track
			p, err := wire.Open(r, wire.Limits{Body: 1 << 20, Decompressed: 1 << 20})
			if len(data) > 512<<10 {
				return
			}
			if err != nil || !bytes.Equal(p.JSON, event.Repair(data)) {
				t.Fatalf("%s: %q arrives as %q, %v", name, data, p.JSON, err)
			}
			p.Release()
		}
	})
}

// FuzzHostileBody proves that a body costs no more than its limits, whatever it
// claims to be, and that a refusal repeats nothing of it.
func FuzzHostileBody(f *testing.F) {
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	_, _ = w.Write(make([]byte, 8<<20)) // a bytes.Buffer never fails
	_ = w.Close()
	f.Add(bomb.Bytes(), "application/json", "gzip")
	f.Add(append(bomb.Bytes()[:40], 0xff, 0xff, 0xff, 0x7f), "", "gzip")
	f.Add([]byte("data=zoe4711@example.org"), "application/x-www-form-urlencoded", "")
	f.Add([]byte("zoe4711=1"), "text/plain", "")
	f.Add([]byte("{}"), "application/json", "zstd4711")
	f.Fuzz(func(t *testing.T, body []byte, contentType, encoding string) {
		lim := wire.Limits{Body: 64 << 10, Decompressed: 128 << 10}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		p, err := wire.Open(&wire.Request{Endpoint: wire.Import, Method: "POST", ContentType: contentType, ContentEncoding: encoding, Body: body}, lim)
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
			t.Fatalf("a body of %d bytes took %d", len(body), used)
		}
		if len(p.JSON) > lim.Decompressed {
			t.Fatalf("%d bytes", len(p.JSON))
		}
		if r, ok := errors.AsType[*wire.Refusal](err); err != nil && (!ok || strings.Contains(r.Text, "4711")) {
			t.Fatalf("refused with %v", err)
		}
		p.Release()
	})
}
