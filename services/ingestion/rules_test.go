package ingestion_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// stored are the events of a name as "time id insert_id properties", in no order.
func (h *harness) stored(name string) []string {
	h.t.Helper()
	stream, err := h.data.ExportEvents(context.Background(), &ingestionv1.ExportEventsRequest{Parent: "projects/1", FromDate: "1970-01-01", ToDate: "2100-12-31", Events: []string{name}})
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			h.t.Fatal(err)
		}
		for _, e := range m.GetEvents() {
			out = append(out, fmt.Sprintf("%d id=%q insert=%q %s", e.GetTime().AsTime().UnixMilli(), e.GetDistinctId(), e.GetInsertId(), e.GetPropertiesJson()))
		}
	}
}

const (
	goodTime = `"time":1774950000`
	goodID   = `"distinct_id":"u"`
	goodKey  = `"$insert_id":"i"`
	goodAll  = goodTime + "," + goodID + "," + goodKey
)

func many(n int, f string) string {
	var list []string
	for i := range n {
		list = append(list, strings.ReplaceAll(f, "#", strconv.Itoa(i)))
	}
	return strings.Join(list, ",")
}

// rule is one event, sent between two good ones, and what becomes of it.
type rule struct {
	name  string
	event string // the whole event with NAME for its name, or just its properties
	field string // of the failed record; empty when it is accepted
	want  string // part of the event as stored; "-" when it is not stored
}

func (r *rule) json(name string) string {
	if strings.Contains(r.event, "NAME") || strings.HasPrefix(r.event, "{") || strings.HasPrefix(r.event, "[") || strings.HasPrefix(r.event, `"event`) || r.event == "7" {
		return strings.ReplaceAll(r.event, "NAME", name)
	}
	return `{"event":"` + name + `","properties":{` + r.event + `}}`
}

func (h *harness) wantStored(name string, r *rule, sent string) {
	h.t.Helper()
	got := h.stored(name)
	switch {
	case r.field != "" || r.want == "-":
		if len(got) != 0 {
			h.t.Errorf("%.300s is stored: %.300s", sent, got)
		}
	case len(got) != 1 || !strings.Contains(got[0], r.want):
		h.t.Errorf("%.300s is stored as %.600s, want …%.300s…", sent, got, r.want)
	}
}

func TestEachRuleOfAStrictImport(t *testing.T) {
	h := newHarness(t)
	cut := strings.Repeat("é", 255)
	id := func(v string) string { return goodTime + "," + goodKey + `,"distinct_id":` + v }
	key := func(v string) string { return goodTime + "," + goodID + `,"$insert_id":` + v }
	at := func(v string) string { return goodID + "," + goodKey + `,"time":` + v }
	and := func(v string) string { return goodAll + "," + v }
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	rules := []rule{
		{"element not an object", `7`, "event", ""},
		{"element a list", `[{"event":"NAME"}]`, "event", ""},
		{"event missing", `{"properties":{` + goodAll + `}}`, "event", ""},
		{"event not a string", `{"event":7,"properties":{` + goodAll + `}}`, "event", ""},
		{"event empty", `{"event":"","properties":{` + goodAll + `}}`, "event", ""},
		{"event not UTF-8", "{\"event\":\"\xff\",\"properties\":{" + goodAll + `}}`, "event", ""},
		{"event name cut to 255 characters", `{"event":"NAME` + strings.Repeat("é", 300) + `","properties":{` + goodAll + `}}`, "", "-"}, // looked for below
		{"properties missing", `{"event":"NAME"}`, "properties", ""},
		{"properties not an object", `{"event":"NAME","properties":[]}`, "properties", ""},
		{"other members are ignored", `{"event":"NAME","meta":{"a":[1]},"properties":{` + goodAll + `}}`, "", `id="u"`},
		{"properties before the event", `{"properties":{` + goodAll + `},"event":"NAME"}`, "", `id="u"`},

		{"time missing", goodID + "," + goodKey, "properties.time", ""},
		{"time null", at(`null`), "properties.time", ""},
		{"time in seconds", at(`1774950000`), "", "1774950000000 "},
		{"time in milliseconds", at(`1774950000123`), "", "1774950000123 "},
		{"time in fractional seconds", at(`1774950000.123`), "", "1774950000123 "},
		{"time as text", at(`"1774950000"`), "", "1774950000000 "},
		{"time of another kind", at(`true`), "properties.time", ""},
		{"time as a date", at(`"2026-03-31T12:00:00"`), "properties.time", ""},
		{"time out of any range", at(`1e400`), "properties.time", ""},
		{"time before 1971", at(`31535999`), "properties.time", ""},
		{"time of 1971", at(`31536000`), "", "31536000000 "},
		{"least time that is milliseconds", at(`31536000000`), "", "31536000000 "},
		{"greatest time that is seconds", at(`31535999999`), "properties.time", ""},
		{"time within the next hour is now", at(strconv.FormatInt(start.Add(59*time.Minute).Unix(), 10)), "", strconv.FormatInt(start.UnixMilli(), 10) + " "},
		{"time beyond the next hour", at(strconv.FormatInt(start.Add(61*time.Minute).Unix(), 10)), "properties.time", ""},

		{"distinct_id missing", goodTime + "," + goodKey, "properties.distinct_id", ""},
		{"distinct_id null", id(`null`), "properties.distinct_id", ""},
		{"distinct_id empty is nobody's", id(`""`), "", `id=""`},
		{"distinct_id a number", id(`42`), "", `id="42"`},
		{"distinct_id a large number stays exact", id(`12345678901234567890`), "", `id="12345678901234567890"`},
		{"distinct_id an object", id(`{}`), "properties.distinct_id", ""},
		{"distinct_id not UTF-8", id("\"\xff\""), "properties.distinct_id", ""},
		{"distinct_id of 255 bytes", id(`"` + strings.Repeat("x", 255) + `"`), "", strings.Repeat("x", 255)},
		{"distinct_id longer than 255 bytes", id(`"` + strings.Repeat("x", 256) + `"`), "properties.distinct_id", ""},
		{"banned ids are compared by case", id(`"None"`), "", `id="None"`},
		{"banned ids are compared untrimmed", id(`" none"`), "", `id=" none"`},
		{"boolean distinct_id by its text", id(`true`), "properties.distinct_id", ""},
		{"number distinct_id by its text", id(`-1`), "properties.distinct_id", ""},
		{"user id wins over distinct_id", id(`"x","$user_id":"y"`), "", `id="y"`},
		{"device id alone", goodTime + "," + goodKey + `,"$device_id":"d1"`, "", `id="$device:d1"`},

		{"insert_id missing", goodTime + "," + goodID, "properties.$insert_id", ""},
		{"insert_id empty", key(`""`), "properties.$insert_id", ""},
		{"insert_id of 36 bytes", key(`"` + strings.Repeat("a", 36) + `"`), "", strings.Repeat("a", 36)},
		{"insert_id longer than 36 bytes", key(`"` + strings.Repeat("a", 37) + `"`), "properties.$insert_id", ""},
		{"insert_id with another character", key(`"a_b"`), "properties.$insert_id", ""},
		{"insert_id banned", key(`"undefined"`), "properties.$insert_id", ""},
		{"insert_id a number", key(`77`), "", `insert="77"`},

		{"text not UTF-8", and("\"utm_source\":\"\xff\""), "properties.utm_source", ""},
		{"text in a list not UTF-8", and("\"list\":[\"\xff\"]"), "properties.list", ""},
		{"property name not UTF-8", and("\"\xff\":1"), "properties", ""},
		{"half a surrogate pair is replaced", and(`"a":"x\ud83d"`), "", `"a":"x\ufffd"`},
		{"text cut to 255 characters", and(`"a":"` + strings.Repeat("é", 300) + `"`), "", `"a":"` + cut + `"`},
		{"property name cut to 255 characters", and(`"` + strings.Repeat("é", 300) + `":1`), "", `"` + cut + `":1`},
		{"two names the same when cut", and(`"` + strings.Repeat("é", 300) + `":1,"` + strings.Repeat("é", 301) + `":2`), "properties", ""},
		{"255 properties", and(many(252, `"p#":#`)), "", `"p251":251`},
		{"256 properties", and(many(253, `"p#":#`)), "properties", ""},
		{"255 keys", and(`"o":{` + many(255, `"k#":1`) + `}`), "", `"k254":1`},
		{"256 keys", and(`"o":{` + many(256, `"k#":1`) + `}`), "properties.o", ""},
		{"255 elements", and(`"l":[` + many(255, `#`) + `]`), "", `254]`},
		{"256 elements", and(`"l":[` + many(256, `#`) + `]`), "properties.l", ""},
		{"depth 3", and(`"o":` + deep(3)), "", `"o":{"a":{"a":{"a":1}}}`},
		{"depth 4", and(`"o":` + deep(4)), "properties.o", ""},
		{"list of objects", and(`"l":[{"a":[1]}]`), "", `"l":[{"a":[1]}]`},
		{"list of 8 KB", and(`"l":["` + strings.Repeat("x", 8<<10-4) + `"]`), "", `"l":["xx`},
		{"list larger than 8 KB", and(`"l":["` + strings.Repeat("x", 8<<10-3) + `"]`), "properties.l", ""},
		{"event of 1 MB", and(`"a":"` + strings.Repeat("x", 1<<20) + `"`), "event", ""},
		{"number out of range", and(`"n":1e400`), "properties.n", ""},
		{"number out of range in a list", and(`"n":[1e400]`), "properties.n", ""},
		{"number written with 30 digits", and(`"n":123456789012345678901234567890`), "", `"n":123456789012345678901234567890`},

		{"ignore true", and(`"$ignore":true`), "", "-"},
		{"ignore a text", and(`"$ignore":"false"`), "", "-"},
		{"ignore wins over other faults", goodTime + `,"$ignore":true`, "", "-"},
		{"ignore false", and(`"$ignore":false`), "", `"$ignore":false`},
		{"ignore empty", and(`"$ignore":""`), "", `"$ignore":""`},

		{"name given twice", and(`"a":1,"a":2`), "properties.a", ""},
		{"name given twice in two spellings", and(`"a":1,"\u0061":2`), "properties.a", ""},
		{"name given twice in an object", and(`"o":{"a":1,"a":2}`), "properties.o.a", ""},
		{"event given twice", `{"event":"NAME","event":"NAME","properties":{` + goodAll + `}}`, "event", ""},
		{"nested 10,000 deep", and(`"o":` + deep(10_001)), "properties.o", ""},
		{"lists nested 10,000 deep", and(`"o":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)), "properties.o", ""},
		{"nested 9,000 deep", and(`"o":` + deep(9_000)), "properties.o", ""},
		{"a name with escapes is the same name", goodTime + "," + goodKey + `,"dist\u0069nct_id":"v"`, "", `id="v"`},
		{"a member with escapes is the same member", `{"ev\u0065nt":"NAME","properties":{` + goodAll + `}}`, "", `id="u"`},

		{"ip is dropped", and(`"ip":"203.0.113.9","x":1`), "", goodInsertThen(`{"x":1,`)},
		{"token is not stored", and(`"token":"tok-1","x":1`), "", goodInsertThen(`{"x":1,`)},
		{"coordinates are kept as sent", and(`"$latitude":52.5,"$longitude":13.4`), "", goodInsertThen(`{"$latitude":52.5,"$longitude":13.4,`)},
		{"explicit places are kept", and(`"$city":"Ulm","$region":"BW","mp_country_code":"DE"`), "", goodInsertThen(`{"$city":"Ulm","$region":"BW","mp_country_code":"DE",`)},
		{"bucket is an ordinary property", and(`"bucket":"b","$bucket":1`), "", `"bucket":"b","$bucket":1`},
		{"import and event size are added", and(`"x":1`), "", `"$mp_event_size":`},
		{"what ingestion writes can't be sent", and(`"$import":false,"$mp_event_size":1,"$mp_api_endpoint":"x","mp_processing_time_ms":1,"$mp_api_timestamp_ms":2,"$identity_failure_reason":"y","$distinct_id_before_identity":"z","$is_reshuffled":true,"$failure_reason":"y","$failure_description":"y"`), "", goodInsertThen(`{"$mp_event_size":`)},
		{"source and partner markers are kept", and(`"$source":"x","$partner_id":"y"`), "", `"$source":"x","$partner_id":"y"`},
		{"lineage and session properties are kept", and(`"$warehouse_type":"w","$duration_s":5,"$event_count":2,"$mp_experiment_name":"e","$duration":1.5,"mp_lib":"go","$lib_version":"1"`), "", `"$warehouse_type":"w","$duration_s":5,"$event_count":2,"$mp_experiment_name":"e","$duration":1.5,"mp_lib":"go","$lib_version":"1"`},
	}
	for _, v := range []string{"00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na", "undefined", "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}"} {
		rules = append(rules, rule{"banned " + v, id(`"` + v + `"`), "properties.distinct_id", ""})
	}
	for i, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			h.t = t
			name := fmt.Sprint("rule", i)
			good := func(n int) string {
				return fmt.Sprintf(`{"event":"good","properties":{%s,%s,"$insert_id":"g-%d-%d"}}`, goodTime, goodID, i, n)
			}
			body := "[" + good(1) + "," + r.json(name) + ",\n" + good(2) + "]"
			before := len(h.stored("good"))
			resp := h.raw(&ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: "application/json", RawQuery: "strict=1", Authorization: basic("secret-1", ""), Body: []byte(body)})
			var got struct {
				Code     int `json:"code"`
				Imported int `json:"num_records_imported"`
				Failed   []struct {
					Index          int
					Field, Message string
				} `json:"failed_records"`
			}
			mustDecode(t, resp.GetBody(), &got)
			if r.field == "" {
				if resp.GetStatus() != 200 || got.Imported != 3 || got.Failed != nil {
					t.Errorf("%.200s: answered %s", body, resp.GetBody())
				}
			} else if resp.GetStatus() != 400 || got.Imported != 2 || len(got.Failed) != 1 || got.Failed[0].Index != 1 || got.Failed[0].Field != r.field || !strings.HasPrefix(got.Failed[0].Message, "'"+r.field+"' is invalid: ") {
				t.Errorf("%.200s: answered %s, want field %s", body, resp.GetBody(), r.field)
			}
			if n := len(h.stored("good")) - before; n != 2 {
				t.Errorf("%d of the 2 good events beside it are stored", n)
			}
			if strings.HasPrefix(r.name, "event name cut") {
				r.want = `id="u"`
				name += strings.Repeat("é", 255-len(name))
			}
			h.wantStored(name, &r, body)
		})
	}
}

// goodInsertThen is how the properties of an event begin behind its insert id.
func goodInsertThen(props string) string { return `insert="i" ` + props }

func TestEachRuleOfALenientImport(t *testing.T) {
	h := newHarness(t)
	for i, r := range []rule{
		{"time missing is now", goodID + "," + goodKey, "", strconv.FormatInt(start.UnixMilli(), 10) + " "},
		{"time null is now", goodID + "," + goodKey + `,"time":null`, "", strconv.FormatInt(start.UnixMilli(), 10) + " "},
		{"time beyond the next hour is now", goodID + "," + goodKey + `,"time":` + strconv.FormatInt(start.Add(72*time.Hour).Unix(), 10), "", strconv.FormatInt(start.UnixMilli(), 10) + " "},
		{"time before 1971 is dropped", goodID + "," + goodKey + `,"time":31535999`, "properties.time", ""},
		{"distinct_id missing is nobody's", goodTime + "," + goodKey, "", `id=""`},
		{"distinct_id banned is dropped", goodTime + "," + goodKey + `,"distinct_id":"none"`, "properties.distinct_id", ""},
		{"insert_id missing is generated", goodTime + "," + goodID, "", `id="u"`},
		{"insert_id with another character still identifies", goodTime + "," + goodID + `,"$insert_id":"a_b"`, "", `insert="a_b"`},
		{"depth 4 is dropped", goodAll + `,"o":{"a":{"b":{"c":{}}}}`, "properties.o", ""},
	} {
		t.Run(r.name, func(t *testing.T) {
			h.t = t
			name := fmt.Sprint("lenient", i)
			body := r.json(name)
			for query, accepted := range map[string][2]string{
				"":          {"1", "0"},
				"verbose=1": {`{"code":200,"error":null,"num_records_imported":1,"status":1}`, `"num_records_imported":0,"status":0}`},
				"strict=0":  {`{"code":200,"num_records_imported":1,"status":"OK"}`, `{"code":200,"num_records_imported":0,"status":"OK"}`},
			} {
				want := accepted[0]
				if r.field != "" {
					want = accepted[1]
				}
				resp := h.raw(&ingestionv1.IngestRawRequest{Endpoint: imports, ContentType: "application/json", RawQuery: query, Authorization: basic("secret-1", ""), Body: []byte("[" + body + "]")})
				if resp.GetStatus() != 200 || !strings.HasSuffix(string(resp.GetBody()), want) {
					t.Errorf("%q: answered %d %s, want …%s", query, resp.GetStatus(), resp.GetBody(), want)
				}
			}
			if r.name == "insert_id missing is generated" {
				if got := h.stored(name); len(got) != 3 {
					t.Errorf("without an insert id %d of 3 are stored", len(got))
				}
				return
			}
			h.wantStored(name, &r, body)
		})
	}
}

func TestEachRuleOfTrack(t *testing.T) {
	h := newHarness(t)
	const token = `"token":"tok-1",`
	ago := func(d time.Duration) string {
		return token + goodID + "," + goodKey + `,"time":` + strconv.FormatInt(start.Add(-d).Unix(), 10)
	}
	now := strconv.FormatInt(start.UnixMilli(), 10) + " "
	for i, r := range []rule{
		{"token missing", goodAll, "properties.token", ""},
		{"token unknown", `"token":"nope",` + goodAll, "properties.token", ""},
		{"time missing is now", token + goodID + "," + goodKey, "", now},
		{"time in the future is now", token + goodID + "," + goodKey + `,"time":` + strconv.FormatInt(start.Add(72*time.Hour).Unix(), 10), "", now},
		{"younger than 5 days", ago(5*24*time.Hour - time.Minute), "", `id="u"`},
		{"older than 5 days", ago(5*24*time.Hour + time.Minute), "properties.time", ""},
		{"insert_id missing is generated", token + goodTime + "," + goodID, "", `id="u"`},
		{"distinct_id missing is nobody's", token + goodTime + "," + goodKey, "", `id=""`},
		{"merge is for import only", `{"event":"$merge","properties":{` + token + `"$distinct_ids":["a","b"]}}`, "event", ""},
		{"import is not set", token + goodAll, "", `"$mp_event_size":`},
		{"system events are ordinary events", `{"event":"$mp_click","properties":{` + token + goodAll + `}}`, "", "-"},
		{"name given twice", token + goodAll + `,"a":1,"a":2`, "properties.a", ""},
	} {
		t.Run(r.name, func(t *testing.T) {
			h.t = t
			name := fmt.Sprint("track", i)
			body := r.json(name)
			want := `{"error":null,"status":1}`
			if r.field != "" {
				want = `{"error":"'` + r.field + `' is invalid: `
			}
			resp := h.raw(&ingestionv1.IngestRawRequest{Endpoint: track, ContentType: "application/json", RawQuery: "verbose=1", Body: []byte(body)})
			if resp.GetStatus() != 200 || !strings.HasPrefix(string(resp.GetBody()), want) {
				t.Errorf("answered %d %s, want %s…", resp.GetStatus(), resp.GetBody(), want)
			}
			if r.name == "system events are ordinary events" {
				name, r.want = "$mp_click", `id="u"`
			}
			h.wantStored(name, &r, body)
			for _, s := range h.stored(name) {
				if strings.Contains(s, "$import") {
					t.Errorf("an event of /track is marked as imported: %s", s)
				}
			}
		})
	}
}
