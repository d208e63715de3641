package ingestion_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/benchkit"
)

func TestEventsCarryTheHostTheyWereSentToAndTheirSize(t *testing.T) {
	h := newHarness(t)
	for i, c := range []struct{ host, want string }{
		{"api-eu.example.org", `"$mp_api_endpoint":"api-eu.example.org",`},
		{"127.0.0.1:8080", `"$mp_api_endpoint":"127.0.0.1",`},
		{"[::1]:8080", `"$mp_api_endpoint":"::1",`},
		{`a"b\`, `"$mp_api_endpoint":"a\"b\\",`},
		{strings.Repeat("h", 1000), `"$mp_api_endpoint":"` + strings.Repeat("h", 255) + `",`},
		{"", `{"x":1,`},
	} {
		name := fmt.Sprint("host", i)
		one := string(toJSON(t, ev(name, start, "u", "i", props{"x": 1})))
		r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", ContentType: "application/json", Authorization: basic("secret-1", ""), Host: c.host, Body: []byte("[ " + one + " ]")})
		got := h.stored(name)
		if r.GetStatus() != 200 || len(got) != 1 || !strings.Contains(got[0], c.want+fmt.Sprintf(`"$mp_event_size":%d,"$import":true}`, len(one))) {
			t.Errorf("host %.20q: answered %s, stored %v", c.host, r.GetBody(), got)
		}
	}
	// A request without a host does not inherit the one before.
	if got := h.stored("host5"); strings.Contains(got[0], "endpoint") {
		t.Errorf("stored %v", got)
	}
}

func TestTheClientsAddressIsHashedIntoAnIDOnlyWhenAskedTo(t *testing.T) {
	h := newHarness(t)
	ids := map[string]string{}
	for i, c := range []struct{ name, query, ip string }{
		{"ip=1", "ip=1", "203.0.113.9"}, {"ip=1 again", "ip=1", "203.0.113.9"}, {"another address", "ip=1", "203.0.113.10"}, {"ip=0", "ip=0", "203.0.113.9"}, {"no ip", "", "203.0.113.9"},
	} {
		name := fmt.Sprint("addr", i)
		h.raw(&ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: c.query, ClientIp: c.ip, ContentType: "application/json", Body: toJSON(t, ev(name, start, "", "i", props{"token": "tok-1"}))})
		got := h.stored(name)
		if len(got) != 1 || strings.Contains(got[0], "203.0.113") {
			t.Fatalf("%s: stored %v", c.name, got)
		}
		_, id, _ := strings.Cut(got[0], `id="`)
		ids[c.name], _, _ = strings.Cut(id, `"`)
	}
	if ids["ip=1"] == "" || ids["ip=1"] != ids["ip=1 again"] || ids["ip=1"] == ids["another address"] || ids["ip=0"] != "" || ids["no ip"] != "" {
		t.Errorf("ids %v", ids)
	}
}

func TestALineOfNDJSONThatCantBeReadFailsAlone(t *testing.T) {
	h := newHarness(t)
	one := func(n int, more string) string {
		return fmt.Sprintf(`{"event":"line","properties":{%s,%s,"$insert_id":"l-%d"%s}}`, goodTime, goodID, n, more)
	}
	body := strings.Join([]string{
		one(0, ""), "", one(1, "") + "\r", `{"event":"line"`, one(3, `,"a":1,"a":2`), one(4, "") + one(5, ""), one(6, `,"o":`+strings.Repeat("[", 20_000)), `not JSON`, one(8, ""),
	}, "\n")
	r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", ContentType: "application/x-ndjson", Authorization: basic("secret-1", ""), Body: []byte(body)})
	var got struct {
		Imported int `json:"num_records_imported"`
		Failed   []struct {
			Index          int
			InsertID       string `json:"insert_id"`
			Field, Message string
		} `json:"failed_records"`
	}
	mustDecode(t, r.GetBody(), &got)
	want := "2  event not valid JSON near byte 15 of the line; 3 l-3 properties.a given twice in one object; send it once; 4 l-4 event the line goes on after its JSON value; send one event a line; 5 l-6 properties.o must be nested at most 3 levels deep; 6  event not valid JSON near byte 1 of the line; "
	have := ""
	for _, f := range got.Failed {
		have += fmt.Sprintf("%d %s %s %s; ", f.Index, f.InsertID, f.Field, strings.TrimPrefix(f.Message, "'"+f.Field+"' is invalid: "))
	}
	if r.GetStatus() != 400 || got.Imported != 3 || have != want {
		t.Errorf("answered %d, %d imported, failed %s", r.GetStatus(), got.Imported, have)
	}
	if n := len(h.stored("line")); n != 3 {
		t.Errorf("%d events stored, want 3", n)
	}
}

func TestTheDedupeKey(t *testing.T) {
	h := newHarness(t)
	at := start.Add(-time.Hour)
	for i, c := range []struct {
		name   string
		second props
		stored int
	}{
		{"the same four", ev("NAME", at, "u", "k", nil), 1},
		{"other properties do not matter", ev("NAME", at, "u", "k", props{"x": 2}), 1},
		{"another event", ev("NAMEx", at, "u", "k", nil), 2},
		{"another id", ev("NAME", at, "v", "k", nil), 2},
		{"another time of the same day", ev("NAME", at.Add(-time.Minute), "u", "k", nil), 2},
		{"another day", ev("NAME", at.AddDate(0, 0, -1), "u", "k", nil), 2},
		{"another insert id", ev("NAME", at, "u", "l", nil), 2},
		{"seconds and milliseconds are one time", ev("NAME", at, "u", "k", props{"time": at.UnixMilli()}), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			name := fmt.Sprintf("key%d-", i)
			c.second["event"] = strings.ReplaceAll(c.second["event"].(string), "NAME", name)
			h.importStrict(1, ev(name, at, "u", "k", props{"x": 1}), c.second) // in one batch
			h.importStrict(1, c.second)                                        // and in another
			if n := len(h.stored(name)) + len(h.stored(name+"x")); n != c.stored {
				t.Errorf("%d stored, want %d", n, c.stored)
			}
		})
	}
}

func TestProjectCredentialsAreValidated(t *testing.T) {
	h := newHarness(t)
	in := benchkit.HandlersOf(h.svc).Ingestion
	for _, c := range []struct {
		name, token, secret string
		ok                  bool
	}{
		{"token alone", "tok-1", "", true},
		{"token and its secret", "tok-1", "secret-1", true},
		{"an unknown token", "nope", "", false},
		{"an unknown secret", "tok-1", "nope", false},
		{"another project's secret", "tok-1", "secret-2", false},
		{"the token as secret", "tok-1", "tok-1", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := in.ValidateProjectCredentials(context.Background(), &ingestionv1.ValidateProjectCredentialsRequest{ProjectToken: c.token, ApiSecret: c.secret})
			if c.ok && err != nil || !c.ok && (!fault.Is(err, fault.Unauthenticated) || strings.Contains(err.Error(), "nope")) {
				t.Errorf("answered %v", err)
			}
		})
	}
}

// unitByUnit encodes a text as the browser SDK does before base64: each UTF-16
// unit on its own.
func unitByUnit(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		if u < 0x800 {
			out = utf8.AppendRune(out, rune(u))
			continue
		}
		out = append(out, byte(u>>12)|0xE0, byte(u>>6)&0x3F|0x80, byte(u)&0x3F|0x80)
	}
	return out
}

func TestBase64OfTheBrowserKeepsCharactersOutsideTheBasicPlane(t *testing.T) {
	h := newHarness(t)
	for i, c := range []struct {
		name, text, want string
		cut              int // bytes taken off the end of the text, as encoded
	}{
		{"an emoji", "a🎉b", "a🎉b", 0},
		{"a joined emoji", "👩‍👩‍👧‍👦", "👩‍👩‍👧‍👦", 0},
		{"two at the ends", "🎉🎉", "🎉🎉", 0},
		{"the last below the surrogates", "\uD7FF", "\uD7FF", 0},
		{"the first and the last above", "\U00010000\U0010FFFF", "\U00010000\U0010FFFF", 0},
		{"half a pair at the cut", "a🎉", "a\uFFFD", 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			name := fmt.Sprint("units", i)
			text := unitByUnit(c.text)
			data := fmt.Appendf(nil, `[{"event":%q,"properties":{"token":"tok-1","distinct_id":"u","t":"%s"}}]`, name, text[:len(text)-c.cut])
			r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/x-www-form-urlencoded", Body: []byte("data=" + url.QueryEscape(base64.StdEncoding.EncodeToString(data)))})
			got := h.stored(name)
			if string(r.GetBody()) != "1" || len(got) != 1 || !strings.Contains(got[0], `"t":"`+c.want+`"`) {
				t.Errorf("answered %s, stored %v, want %q", r.GetBody(), got, c.want)
			}
		})
	}
}
