package ingestion_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

const (
	track   = ingestionv1.IngestRawRequest_ENDPOINT_TRACK
	imports = ingestionv1.IngestRawRequest_ENDPOINT_IMPORT
	engage  = ingestionv1.IngestRawRequest_ENDPOINT_ENGAGE
	groups  = ingestionv1.IngestRawRequest_ENDPOINT_GROUPS
)

func TestEveryWireFormStoresTheEventAndAnswersInItsOwnShape(t *testing.T) {
	h := newHarness(t)
	// The '>' and '?' make the base64 contain '+' and '/'.
	one := func(insert string) string {
		return string(toJSON(t, ev("Buy>>>???~~~", start, "u", insert, props{"token": "tok-1", "note": "ÿþ~~~"})))
	}
	b64 := base64.StdEncoding.EncodeToString
	secret := basic("secret-1", "")
	formType := "application/x-www-form-urlencoded"
	for i, c := range []struct {
		name string
		req  *ingestionv1.IngestRawRequest
		want string
	}{
		{"parameters in the form: callback with verbose", &ingestionv1.IngestRawRequest{Endpoint: track, ContentType: formType, Body: form("data", one("w12"), "callback", "f", "verbose", "1", "img", "1")}, `200 text/javascript f({"error":null,"status":1})`},
		{"parameters in the form: img before verbose", &ingestionv1.IngestRawRequest{Endpoint: track, ContentType: formType, Body: form("data", one("w13"), "verbose", "1", "img", "1")}, `200 image/gif`},
		{"parameters in the form: strict", &ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: formType, Authorization: secret, Body: form("data", one("w14"), "strict", "1")}, `200 application/json {"code":200,"num_records_imported":1,"status":"OK"}`},
		{"parameters in the form: project_id of a service account", &ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: formType, ContentEncoding: "gzip", Authorization: basic("robot", "hush"), Body: gz(t, form("data", one("w15"), "project_id", "1"))}, `200 text/plain 1`},
		{"verbose=2", &ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: "verbose=2&test=1&api_key=k&_=1774950000000", ContentType: "application/json", Body: []byte(one("w16"))}, `200 application/json {"error":null,"status":1}`},
		{"project secret", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "verbose=0", ContentType: "application/json", Authorization: secret, Body: []byte("[" + one("w17") + "]")}, `200 text/plain 1`},
		{"project token", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=0", ContentType: "application/json", Authorization: basic("tok-1", ""), Body: []byte("[" + one("w18") + "]")}, `200 application/json {"code":200,"num_records_imported":1,"status":"OK"}`},
		{"gzip of several members", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", ContentEncoding: "gzip", ContentType: "application/json", Authorization: secret, Body: append(gz(t, []byte("["+one("w19"))), gz(t, []byte(strings.Repeat(" ", 5000)+"]"))...)}, `200 application/json {"code":200,"num_records_imported":1,"status":"OK"}`},
		{"a byte order mark", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", ContentType: "application/json", Authorization: secret, Body: []byte("\ufeff[" + one("w27") + "]")}, `200 application/json {"code":200,"num_records_imported":1,"status":"OK"}`},
		{"a byte order mark before lines", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", ContentType: "application/x-ndjson", ContentEncoding: "gzip", Authorization: secret, Body: gz(t, []byte("\ufeff"+one("w28")+"\n"+one("w29")))}, `200 application/json {"code":200,"num_records_imported":2,"status":"OK"}`},
		{"an unlabelled body", &ingestionv1.IngestRawRequest{Endpoint: track, Body: []byte(" [" + one("w20") + "]")}, `200 text/plain 1`},
		{"unpadded base64", &ingestionv1.IngestRawRequest{Endpoint: track, Method: "GET", RawQuery: "data=" + strings.TrimRight(b64([]byte(one("w21"))), "=")}, `200 text/plain 1`},
		{"data in the query of a POST", &ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: "data=" + url.QueryEscape(one("w22"))}, `200 text/plain 1`},
		{"import knows no callback and no img: verbose", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "callback=f&img=1&verbose=1", ContentType: "application/json", Authorization: secret, Body: []byte("[" + one("w24") + "]")}, `200 application/json {"code":200,"error":null,"num_records_imported":1,"status":1}`},
		{"import knows no callback and no img: the bare digit", &ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: formType, Authorization: secret, Body: form("data", one("w25"), "callback", "f", "img", "1")}, `200 text/plain 1`},
		{"import knows no callback and no img: strict", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "callback=f&img=1&strict=1", ContentType: "application/json", Authorization: secret, Body: []byte("[" + one("w26") + "]")}, `200 application/json {"code":200,"num_records_imported":1,"status":"OK"}`},
		{"import knows no callback and no img: a refused event", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "callback=f&img=1&verbose=1", ContentType: "application/json", Authorization: secret, Body: []byte(`[{"event":"x"}]`)}, `200 application/json {"code":200,"error":"'properties' is invalid: missing","num_records_imported":0,"status":0}`},
		{"import knows no callback and no img: a refused body", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "callback=f&img=1&verbose=1", ContentType: "application/json", Authorization: secret, Body: []byte(`[7`)}, `200 application/json {"error":"invalid JSON near byte 2","status":0}`},
		{"import knows no callback and no img: a refused body, the bare digit", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "callback=f&img=1", ContentType: "application/json", Authorization: secret, Body: []byte(`[7`)}, `200 text/plain 0`},
		{"go merge and node import answer 0", &ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: formType, Authorization: secret, Body: form("data", `{"event":"x"}`)}, `200 text/plain 0`},
		{"callback of a refused event", &ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: "callback=f&verbose=1&data=" + url.QueryEscape(`{"event":"x"}`)}, `200 text/javascript f({"error":"'properties' is invalid: missing","status":0})`},
		{"pixel of a refused event", &ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: "img=1&data=" + url.QueryEscape(`{"event":"x"}`)}, `200 image/gif`},
		{"one valid object is enough", &ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/json", Body: []byte(`[{"event":"x"},` + one("w23") + `]`)}, `200 text/plain 1`},
		{"go track: JSON array, verbose", &ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/json", RawQuery: "verbose=1", Body: []byte("[" + one("w0") + "]")}, `200 application/json {"error":null,"status":1}`},
		{"node track: GET, base64, verbose=0", &ingestionv1.IngestRawRequest{Endpoint: track, Method: "GET", RawQuery: "ip=0&verbose=0&data=" + b64([]byte(one("w1")))}, `200 text/plain 1`},
		{"node batch: form, unescaped base64", &ingestionv1.IngestRawRequest{Endpoint: track, ContentType: formType, Body: []byte("data=" + b64([]byte("["+one("w2")+"]")))}, `200 text/plain 1`},
		{"python track: form, JSON, verbose in the body", &ingestionv1.IngestRawRequest{Endpoint: track, ContentType: formType, Body: form("data", one("w3"), "verbose", "1", "ip", "0")}, `200 application/json {"error":null,"status":1}`},
		{"browser beacon: text/plain", &ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "text/plain;charset=UTF-8", RawQuery: "verbose=1&ip=1&_=1", Body: form("data", b64([]byte("["+one("w4")+"]")))}, `200 application/json {"error":null,"status":1}`},
		{"pixel", &ingestionv1.IngestRawRequest{Endpoint: track, Method: "GET", RawQuery: "img=1&data=" + b64([]byte(one("w5")))}, `200 image/gif`},
		{"callback", &ingestionv1.IngestRawRequest{Endpoint: track, Method: "GET", RawQuery: "callback=mp.cb&data=" + b64([]byte(one("w6")))}, `200 text/javascript mp.cb(1)`},
		{"go import: gzip, strict", &ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: "application/json", ContentEncoding: "gzip", RawQuery: "strict=1&verbose=1", Authorization: secret, Body: gz(t, []byte("["+one("w7")+"]"))}, `200 application/json {"code":200,"num_records_imported":1,"status":"OK"}`},
		{"python import: form, verbose, service account", &ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: formType, RawQuery: "project_id=1", Authorization: basic("robot", "hush"), Body: form("data", one("w8"), "verbose", "1")}, `200 application/json {"code":200,"error":null,"num_records_imported":1,"status":1}`},
		{"node import: GET, the bare digit", &ingestionv1.IngestRawRequest{Endpoint: imports, Method: "GET", RawQuery: "ip=0&verbose=0&data=" + b64([]byte(one("w9"))), Authorization: secret}, `200 text/plain 1`},
		{"NDJSON, literal Basic", &ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: "application/x-ndjson", RawQuery: "strict=1&project_id=1", Authorization: "Basic robot:hush", Body: []byte(one("w10") + "\n\n" + one("w11") + "\n")}, `200 application/json {"code":200,"num_records_imported":2,"status":"OK"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			r := h.raw(c.req)
			got := fmt.Sprintf("%d %s", r.GetStatus(), r.GetContentType())
			if r.GetContentType() != "image/gif" {
				got += " " + string(r.GetBody())
			} else if len(r.GetBody()) != 43 || r.GetHeaders()["Cache-Control"] != "no-store" {
				t.Errorf("pixel of %d bytes, %v", len(r.GetBody()), r.GetHeaders())
			}
			if got != c.want {
				t.Errorf("%d: answered %q, want %q", i, got, c.want)
			}
		})
	}
	h.t = t
	seen := map[string]bool{}
	for _, e := range h.export(1) {
		if e.GetEvent() != "Buy>>>???~~~" || !strings.Contains(e.GetPropertiesJson(), `"note":"ÿþ~~~"`) || e.GetDistinctId() != "u" {
			t.Errorf("stored as %v", e)
		}
		if strings.Contains(e.GetPropertiesJson(), "token") {
			t.Error("the token was stored")
		}
		seen[e.GetInsertId()] = true
	}
	for i := range 27 {
		if !seen[fmt.Sprintf("w%d", i)] {
			t.Errorf("event w%d was answered with success but is not stored", i)
		}
	}
}

func TestBadRequestsAreRefusedPreciselyAndStoreNothing(t *testing.T) {
	h := newHarness(t)
	good := string(toJSON(t, ev("E", start, "u", "i1", props{"token": "tok-1"})))
	secret := basic("secret-1", "")
	many := "[" + strings.Repeat(good+",", 2000) + good + "]"
	bomb := gz(t, make([]byte, 64<<20))
	if len(bomb) > 100_000 {
		t.Fatal("the bomb is not small")
	}
	for _, c := range []struct {
		name string
		req  *ingestionv1.IngestRawRequest
		code int32
		want string
	}{
		{"malformed array", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte("[" + good + ",{]")}, 400, `"error":"invalid JSON near byte`},
		{"malformed, not strict", &ingestionv1.IngestRawRequest{Endpoint: imports, Authorization: secret, ContentType: "application/json", Body: []byte("[" + good)}, 200, "0"},
		{"malformed on /track", &ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: "verbose=1", ContentType: "application/json", Body: []byte("[" + good + "}")}, 200, `"status":0`},
		{"duplicate key", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte(`[{"event":"E","properties":{"a":1,"a":2}}]`)}, 400, "given twice in one object"},
		{"malformed array has no failed records", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte("[" + good + ",{]")}, 400, `"num_records_imported":0,"failed_records":[]}`},
		{"malformed behind an unreadable event", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte(`[{"event":"E","event":"E"},` + good + ",{]")}, 400, `"num_records_imported":0,"failed_records":[]}`},
		{"endless array behind an unreadable event", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte(`[{"event":"E","event":"E"},` + good)}, 400, `"num_records_imported":0,"failed_records":[]}`},
		{"2001 events behind an unreadable one", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte(`[{"event":"E","event":"E"},` + many[1:])}, 413, "max limit of 2000 records"},
		{"trailing data behind an unreadable event", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte(`[{"event":"E","event":"E"}]` + good)}, 400, "goes on after"},
		{"a single object with a name given twice", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte(`{"event":"E","properties":{"$insert_id":"i9","a":1,"a":2}}`)}, 400, `"failed_records":[{"index":0,"insert_id":"i9","$insert_id":"i9","field":"properties.a","message":"'properties.a' is invalid: given twice in one object; send it once"}]`},
		{"NDJSON sent as JSON", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte(good + "\n" + good + "\n")}, 400, `"error":"the body goes on after its JSON value; one object a line needs Content-Type: application/x-ndjson"`},
		{"NDJSON sent as JSON, behind an unreadable event", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte(`{"event":"E","event":"E"}` + "\n" + good)}, 400, "Content-Type: application/x-ndjson"},
		{"NDJSON without a type", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "verbose=1", Authorization: secret, Body: []byte(good + "\n" + good)}, 200, "Content-Type: application/x-ndjson"},
		{"NDJSON of updates sent as JSON", &ingestionv1.IngestRawRequest{Endpoint: engage, RawQuery: "verbose=1", ContentType: "application/json", Body: []byte("{}\n{}")}, 200, "Content-Type: application/x-ndjson"},
		{"trailing text is no NDJSON", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte(good + "x")}, 400, `"error":"the body goes on after its JSON value"`},
		{"an array behind an array is no NDJSON", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte("[" + good + "]\n[" + good + "]")}, 400, `"error":"the body goes on after its JSON value"`},
		{"endless array", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte("[" + strings.Repeat(good+",", 100))}, 400, "invalid JSON near byte"},
		{"2001 lines", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/x-ndjson", Body: []byte(strings.Repeat(good+"\n", 2001))}, 413, "max limit of 2000 records"},
		{"2001 updates", &ingestionv1.IngestRawRequest{Endpoint: engage, ContentType: "application/json", Body: []byte("[" + strings.Repeat("{},", 2000) + "{}]")}, 413, `{"code":413,"error":"request exceeds max limit of 2000 records","status":"Request Entity Too Large"}`},
		{"bearer token", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: "Bearer abc", ContentType: "application/json", Body: []byte("[" + good + "]")}, 401, `{"code":401,"error":"Invalid credentials","status":"Unauthorized"}`},
		{"service account without project_id", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: basic("robot", "hush"), ContentType: "application/json", Body: []byte("[" + good + "]")}, 401, `{"code":401,"error":"project_id is required","status":"Unauthorized"}`},
		{"service account without project_id, in a form", &ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: "application/x-www-form-urlencoded", Authorization: basic("robot", "hush"), Body: form("data", good, "verbose", "1")}, 401, `{"code":401,"error":"project_id is required","status":"Unauthorized"}`},
		{"a stranger without project_id", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: basic("robot", "wrong"), ContentType: "application/json", Body: []byte("[" + good + "]")}, 401, `{"code":401,"error":"Invalid credentials","status":"Unauthorized"}`},
		{"service account, wrong project_id in the form", &ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: "application/x-www-form-urlencoded", Authorization: basic("robot", "hush"), Body: form("data", good, "project_id", "99")}, 401, `{"code":401,"error":"project_id is another project's","status":"Unauthorized"}`},
		{"project_id of the form against the query's", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "project_id=1", ContentType: "application/x-www-form-urlencoded", Authorization: basic("robot", "hush"), Body: form("data", good, "project_id", "99")}, 401, `"code":401`},
		{"a stranger's bomb with project_id in the query", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "project_id=1", ContentType: "application/x-www-form-urlencoded", ContentEncoding: "gzip", Authorization: basic("robot", "wrong"), Body: bomb}, 401, `"code":401`},
		{"another method", &ingestionv1.IngestRawRequest{Endpoint: track, Method: "PUT", Body: []byte(good)}, 405, `"code":405`},
		{"deflate", &ingestionv1.IngestRawRequest{Endpoint: track, ContentEncoding: "deflate", Body: []byte("x")}, 415, `{"code":415,"error":"unsupported content encoding: only gzip","status":"Unsupported Media Type"}`},
		{"oversized on /track", &ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/json", Body: []byte("[" + strings.Repeat(" ", 10<<20) + "]")}, 413, `{"code":413,`},
		{"trailing data", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte("[" + good + "][]")}, 400, "goes on after"},
		{"no credential", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", ContentType: "application/json", Body: []byte("[" + good + "]")}, 401, `{"code":401,"error":"Invalid credentials","status":"Unauthorized"}`},
		{"wrong secret", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1&project_id=1", Authorization: basic("robot", "wrong"), ContentType: "application/json", Body: []byte("[" + good + "]")}, 401, `"code":401`},
		{"a token that is no text", &ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: "verbose=1", ContentType: "application/json", Body: []byte(`{"event":"E","properties":{"token":123,"distinct_id":"u"}}`)}, 200, `{"error":"'properties.token' is invalid: must be a string, the project's token","status":0}`},
		{"no token", &ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: "verbose=1", ContentType: "application/json", Body: []byte(`{"event":"E","properties":{"distinct_id":"u"}}`)}, 200, `{"error":"'properties.token' is invalid: missing; send the project's token","status":0}`},
		{"unknown token", &ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: "verbose=1", ContentType: "application/json", Body: toJSON(t, ev("E", start, "u", "i", props{"token": "nope"}))}, 200, `{"error":"'properties.token' is invalid: no such project","status":0}`},
		{"token missing", &ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/json", Body: toJSON(t, ev("E", start, "u", "i", nil))}, 200, "0"},
		{"gzip bomb", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentEncoding: "gzip", ContentType: "application/json", Body: bomb}, 413, `{"code":413,"error":"request exceeds max limit of 10485760 bytes","status":"Request Entity Too Large"}`},
		{"cut-off gzip", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentEncoding: "gzip", ContentType: "application/json", Body: gz(t, []byte("["+good+"]"))[:60]}, 400, "gzip body is cut off"},
		{"not gzip", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentEncoding: "gzip", ContentType: "application/json", Body: []byte("[" + good + "]")}, 400, "not valid gzip"},
		{"unknown encoding", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentEncoding: "zstd", ContentType: "application/json", Body: []byte("x")}, 415, "unsupported content encoding"},
		{"oversized", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte("[" + strings.Repeat(" ", 10<<20) + "]")}, 413, "max limit of 10485760 bytes"},
		{"2001 events", &ingestionv1.IngestRawRequest{Endpoint: imports, RawQuery: "strict=1", Authorization: secret, ContentType: "application/json", Body: []byte(many)}, 413, "max limit of 2000 records"},
		{"neither JSON nor base64", &ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: "verbose=1", ContentType: "application/x-www-form-urlencoded", Body: []byte("data=%%%")}, 200, `"status":0`},
		{"nothing", &ingestionv1.IngestRawRequest{Endpoint: track, RawQuery: "verbose=1"}, 200, `{"error":"no data","status":0}`},
		{"callback with markup", &ingestionv1.IngestRawRequest{Endpoint: track, Method: "GET", RawQuery: "callback=%3Cscript%3E&data=e30"}, 200, "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			r := h.raw(c.req)
			if r.GetStatus() != c.code || !strings.Contains(string(r.GetBody()), c.want) {
				t.Errorf("answered %d %s, want %d …%s…", r.GetStatus(), r.GetBody(), c.code, c.want)
			}
		})
	}
	h.t = t
	if n := len(h.export(1)); n != 0 {
		t.Errorf("%d events were stored", n)
	}
}

func TestStrictImportReportsEachBadEventAndStoresTheRest(t *testing.T) {
	h := newHarness(t)
	at := start.Add(-time.Hour)
	deep := props{"a": props{"b": props{"c": props{"d": props{}}}}}
	wide := props{}
	for i := range 256 {
		wide[fmt.Sprint("k", i)] = i
	}
	long := strings.Repeat("é", 300)
	batch := []any{
		ev("Good", at, "u1", "a-0", props{"text": long}),
		props{"event": 7, "properties": props{}},
		props{"event": "E"},
		ev("E", at, "", "a-3", nil),
		ev("E", at, "none", "a-4", nil),
		ev("E", at, "u", "", nil),
		ev("E", at, "u", "bad id!", nil),
		ev("E", at, "u", strings.Repeat("x", 37), nil),
		ev("E", time.Unix(1000, 0), "u", "a-8", nil),
		ev("E", start.Add(2*time.Hour), "u", "a-9", nil),
		ev("E", at, "u", "a-10", deep),
		ev("E", at, "u", "a-11", wide),
		ev("E", at, "u", "a-12", props{"time": "yesterday"}),
		"MARK",
		ev("E", at, "", "a-14", props{"distinct_id": []int{1}}),
		ev("Dropped", at, "u", "a-15", props{"$ignore": true}),
		ev("Good", at, "", "a-16", props{"distinct_id": 42, "time": fmt.Sprint(at.Unix())}),
		ev("Good", start.Add(30*time.Minute), "u1", "a-17", props{"half": "HALF", "list": []string{"HALF"}}),
	}
	body := toJSON(t, batch)
	body = []byte(strings.Replace(string(body), `"MARK"`, `{"event":"E","properties":{"distinct_id":"u","$insert_id":"a-13","time":1,"bad":"`+"\xff"+`"}}`, 1))
	body = []byte(strings.ReplaceAll(string(body), "HALF", `cut\ud83d`)) // as the browser SDK's cut at 255 units leaves it
	r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: "application/json", RawQuery: "strict=1", Authorization: basic("secret-1", ""), Body: body})
	var got struct {
		Code     int `json:"code"`
		Imported int `json:"num_records_imported"`
		Failed   []struct {
			Index    int    `json:"index"`
			InsertID string `json:"insert_id"`
			Dollar   string `json:"$insert_id"`
			Field    string `json:"field"`
		} `json:"failed_records"`
	}
	mustDecode(t, r.GetBody(), &got)
	want := map[int]string{
		1: "event", 2: "properties", 3: "properties.distinct_id", 4: "properties.distinct_id", 5: "properties.$insert_id", 6: "properties.$insert_id", 7: "properties.$insert_id",
		8: "properties.time", 9: "properties.time", 10: "properties.a", 11: "properties", 12: "properties.time", 13: "properties.bad", 14: "properties.distinct_id",
	}
	if r.GetStatus() != 400 || got.Code != 400 || got.Imported != 4 || len(got.Failed) != len(want) {
		t.Errorf("answered %d %s", r.GetStatus(), r.GetBody())
	}
	for _, f := range got.Failed {
		if want[f.Index] != f.Field || f.InsertID != f.Dollar || (f.Index > 7 && f.InsertID != fmt.Sprintf("a-%d", f.Index)) {
			t.Errorf("failed record %+v, want field %s", f, want[f.Index])
		}
	}
	stored := h.export(1)
	if len(stored) != 3 {
		t.Fatalf("%d events stored, want 3", len(stored))
	}
	for _, e := range stored {
		switch e.GetInsertId() {
		case "a-0":
			if !strings.Contains(e.GetPropertiesJson(), `"`+strings.Repeat("é", 255)+`"`) {
				t.Error("a long text is not cut to 255 characters")
			}
		case "a-16":
			if e.GetDistinctId() != "42" {
				t.Errorf("a numeric id became %q", e.GetDistinctId())
			}
		case "a-17":
			if !strings.Contains(e.GetPropertiesJson(), `"half":"cut\ufffd"`) {
				t.Errorf("half a character was stored as %s", e.GetPropertiesJson())
			}
			if !e.GetTime().AsTime().Equal(start) {
				t.Errorf("a time half an hour ahead became %v, want now", e.GetTime().AsTime())
			}
		}
	}
}

// Values that JSON readers differ on must not make one event spoil everybody's cohort.
func TestOddValuesDoNotBreakAFilter(t *testing.T) {
	h := newHarness(t)
	odd := `"a":"\ud83d","b":"\u0000x","c":-0,"d":123456789012345678901234567890,"e":1E+5,"f":1e308,"g":"\u2028\/","h":{"":[{}]},"i":[[],"\ud83d\ude00"]`
	body := strings.Replace(string(toJSON(t, []props{ev("E", start, "u", "h1", props{"text": "ODD", "plan": "gold"})})), `"text":"ODD"`, odd, 1)
	h.raw(&ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: "application/json", RawQuery: "strict=1", Authorization: basic("secret-1", ""), Body: []byte(body)})
	l := did(1, "E")
	l.GetBehavior().Filters = []*typev1.PropertyFilter{filter("plan", typeString, opEquals, "gold")}
	if got := h.ids(1, h.evaluate(1, l).leaves[0]); got != "u" {
		t.Errorf("selected %q", got)
	}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"} {
		for _, f := range []*typev1.PropertyFilter{filter(name, typeString, opIsSet), filter(name, typeString, opEquals, "x"), filter(name, typeNumber, opEquals, 1), filter(name, typev1.ValueType_VALUE_TYPE_DATETIME, opEquals, start), filter(name, typev1.ValueType_VALUE_TYPE_LIST, typev1.PropertyOperator_PROPERTY_OPERATOR_ANY_OF, "x")} {
			l.GetBehavior().Filters = []*typev1.PropertyFilter{f}
			if got := h.ids(1, h.evaluate(1, l).leaves[0]); (got == "u") != (f.GetOperator() == opIsSet) {
				t.Errorf("%v selected %q", f, got)
			}
		}
		m := did(1, "E")
		m.GetBehavior().Measure, m.GetBehavior().MeasureProperty = typev1.Measure_MEASURE_SUM, name
		h.evaluate(1, m)
	}
}

func TestRepeatedEventsCountOnceAlsoConcurrentlyAfterRestartAndMerge(t *testing.T) {
	h := newHarness(t)
	batch := func(day int) []props {
		var out []props
		for i := range 300 {
			out = append(out, ev("View", start.Add(-time.Duration(day)*24*time.Hour-time.Duration(i)*time.Second), "", fmt.Sprintf("d%d-%d", day, i), props{"$device_id": fmt.Sprint("dev", i%20)}))
		}
		return out
	}
	var wg sync.WaitGroup
	for range 8 {
		for day := range 4 {
			wg.Go(func() { h.importStrict(1, batch(day)...) })
		}
	}
	wg.Wait()
	count := func(what string, want int) {
		t.Helper()
		if n := len(h.export(1)); n != want {
			t.Fatalf("%s: %d events, want %d", what, n, want)
		}
	}
	count("concurrent repeats", 1200)
	h.restart()
	for day := range 4 {
		h.importStrict(1, batch(day)...)
	}
	count("repeats after a restart", 1200)
	// The devices become users; the re-sent events are still the same events.
	for i := range 20 {
		h.importStrict(1, ev("Login", start, "", fmt.Sprint("login", i), props{"$device_id": fmt.Sprint("dev", i), "$user_id": fmt.Sprint("user", i)}))
	}
	h.importStrict(1, batch(2)...)
	count("repeats after a merge", 1220)
	for _, e := range h.export(1) {
		if !strings.HasPrefix(e.GetDistinctId(), "user") {
			t.Fatalf("event of %s did not follow the merge", e.GetDistinctId())
		}
	}
	// Without an insert id nothing is a repeat.
	for range 2 {
		h.raw(&ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/json", Body: toJSON(t, ev("Ping", start, "user1", "", props{"token": "tok-1"}))})
	}
	count("events without insert id", 1222)
	st, err := h.data.GetDataStatistics(context.Background(), &ingestionv1.GetDataStatisticsRequest{Parent: "projects/1"})
	if err != nil || st.GetEvents() != 1222 || st.GetUsers() != 20 {
		t.Errorf("statistics %v, %v", st, err)
	}
}

func TestDedupeStaysExactWhenDaysDoNotFitInMemory(t *testing.T) {
	h := newHarness(t)
	h.cfg.HashBudget = 250
	h.restart()
	for range 3 {
		for day := range 5 {
			var out []props
			for i := range 200 {
				out = append(out, ev("View", start.Add(-time.Duration(day)*24*time.Hour), fmt.Sprint("u", i), fmt.Sprint("i", i), nil))
			}
			h.importStrict(1, out...)
		}
	}
	if n := len(h.export(1)); n != 1000 {
		t.Fatalf("%d events, want 1000", n)
	}
}

func TestAnExportThatIsSentAgainCountsOnceWhateverWasMergedMeanwhile(t *testing.T) {
	h := newHarness(t)
	anonymous := "0b1f0d2e-5c3a-4d7e-9f10-1234567890ab"
	// ORIGINAL: an event before the merge, one of an id that is an alias, and one after it.
	h.importStrict(2, ev("E", start, anonymous, "m1", nil), ev("E", start, "old", "m2", nil))
	h.importStrict(2, ev("$create_alias", start, "", "m3", props{"distinct_id": "bob", "alias": "nick"}), ev("$identify", start, "", "m4", props{"$identified_id": "bob", "$anon_id": anonymous}))
	h.importStrict(2, ev("E", start, "nick", "m5", nil), ev("$merge", start, "", "m6", props{"$distinct_ids": []string{"bob", "old"}}), ev("E", start, "nick", "m7", nil))
	for insert, want := range map[string]string{"m1": anonymous, "m2": "old", "m5": "nick", "m7": "nick"} {
		for _, e := range h.export(2) {
			if e.GetInsertId() == insert && !strings.Contains(e.GetPropertiesJson(), `"$distinct_id_before_identity":"`+want+`"`) {
				t.Errorf("%s of %s: %s, want the id it arrived with, %s", insert, e.GetDistinctId(), e.GetPropertiesJson(), want)
			}
		}
	}
	before := h.export(2)
	req := &ingestionv1.ImportEventsRequest{Parent: "projects/2"}
	for _, e := range before {
		req.Events = append(req.Events, &ingestionv1.Event{Event: e.GetEvent(), Time: e.GetTime(), DistinctId: e.GetDistinctId(), InsertId: e.GetInsertId(), PropertiesJson: e.GetPropertiesJson()})
	}
	r, err := h.in.ImportEvents(context.Background(), req)
	if err != nil || int(r.GetDuplicates()) != len(before) || len(h.export(2)) != len(before) {
		t.Errorf("an export sent again: %v, %v, want %d duplicates", r, err, len(before))
	}
}

func TestZerosInNamesAndIDsMakeNoTwoEventsTheSame(t *testing.T) {
	h := newHarness(t)
	// A time whose eight bytes can all stand in a text, in 2020.
	at := time.UnixMilli(0x0170_1020_3c68)
	clock := "\x68\x3c\x20\x10\x70\x01\x00\x00"
	list := []props{
		ev("A\x00"+clock+"p", at, "q", "z1", nil), ev("A", at, "p\x00"+clock+"q", "z1", nil),
		ev("A", at, "p\x00q", "z1", nil), ev("A\x00", at, "p", "z1", nil), ev("A", at, "\x00p", "z1", nil),
	}
	h.importStrict(1, list...)
	st, err := h.data.GetDataStatistics(context.Background(), &ingestionv1.GetDataStatisticsRequest{Parent: "projects/1"})
	if err != nil || st.GetEvents() != int64(len(list)) {
		t.Errorf("%v, %v: want %d events", st, err, len(list))
	}
}

func TestATypedEventThatBreaksARuleFailsAlone(t *testing.T) {
	h := newHarness(t)
	typedJSON := func(insertID, text string) *ingestionv1.Event {
		return &ingestionv1.Event{Event: "Pay", Time: timestamppb.New(start), DistinctId: "u", InsertId: insertID, PropertiesJson: text}
	}
	both := typedJSON("b6", `{}`)
	both.Properties = &structpb.Struct{}
	bad := []struct {
		e     *ingestionv1.Event
		field string
	}{
		{typed("", start, "u", "b1"), "event"},
		{&ingestionv1.Event{Event: "Pay", DistinctId: "u", InsertId: "b2"}, "time"},
		{typed("Pay", start.AddDate(1, 0, 0), "u", "b3"), "time"},
		{typed("Pay", start, "u", "no spaces"), "insert_id"},
		{typed("Pay", start, strings.Repeat("x", 256), "b5"), "distinct_id"},
		{both, "properties_json"},
		{typedJSON("b7", `[1]`), "properties_json"},
		{typedJSON("b8", `{"a":1,"a":2}`), "properties_json"},
		{typedJSON("b9", `{"a":`), "properties_json"},
		{typedJSON("b10", `null`), "properties_json"},
	}
	req := &ingestionv1.ImportEventsRequest{Parent: "projects/1"}
	for _, b := range bad {
		req.Events = append(req.Events, b.e)
	}
	req.Events = append(req.Events, typedJSON("g1", `{"big":9007199254740993,"time":1}`), &ingestionv1.Event{Event: "Pay", PropertiesJson: fmt.Sprintf(`{"time":%d,"distinct_id":"w","$insert_id":"g2"}`, start.Unix()-60)})
	r, err := h.in.ImportEvents(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	if r.GetImported() != 2 || len(r.GetFailedRecords()) != len(bad) {
		t.Fatalf("answered %v, want the last two stored and the others refused", r)
	}
	for i, f := range r.GetFailedRecords() {
		if int(f.GetIndex()) != i || f.GetField() != bad[i].field || f.GetMessage() == "" {
			t.Errorf("event %d: %v, want one that names %s", i, f, bad[i].field)
		}
	}
	stored := h.export(1)
	if len(stored) != 2 || stored[1].GetDistinctId() != "w" || !stored[0].GetTime().AsTime().Equal(start) || !strings.Contains(stored[0].GetPropertiesJson(), `"big":9007199254740993`) {
		t.Errorf("stored %v", stored)
	}
	if r, err := h.in.ImportEvents(context.Background(), &ingestionv1.ImportEventsRequest{Parent: "projects/1", Events: []*ingestionv1.Event{both}}); err != nil || len(r.GetFailedRecords()) != 1 {
		t.Errorf("a request of one that is refused: %v, %v", r, err)
	}
}

func TestTypedImportReportsDuplicatesAndFailures(t *testing.T) {
	h := newHarness(t)
	req := &ingestionv1.ImportEventsRequest{Parent: "projects/1", Events: []*ingestionv1.Event{
		typed("Pay", start, "u", "x1"), typed("Pay", start, "u", "x1"), typed("Pay", start, "null", "x2"), typed("Pay", start.Add(-time.Hour), "u", ""),
	}}
	r, err := h.in.ImportEvents(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	if r.GetImported() != 3 || r.GetDuplicates() != 1 || len(r.GetFailedRecords()) != 1 || r.GetFailedRecords()[0].GetIndex() != 2 || r.GetFailedRecords()[0].GetField() != "distinct_id" {
		t.Errorf("answered %v", r)
	}
	if _, err := h.in.ImportEvents(context.Background(), &ingestionv1.ImportEventsRequest{Parent: "projects/99", Events: req.GetEvents()}); err == nil {
		t.Error("an unknown project was accepted")
	}
}
