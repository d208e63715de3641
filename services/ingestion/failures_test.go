package ingestion_test

import (
	"strings"
	"testing"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// personal stands for people's data: no answer may repeat it.
const personal = "zoe4711@example.org"

// failedRecord is a row of failed_records.
type failedRecord struct {
	Index          int
	InsertID       string `json:"insert_id"`
	Field, Message string
}

// failing sends one element, strict, and returns how it failed.
func (h *harness) failing(endpoint ingestionv1.IngestRawRequest_Endpoint, contentType, element string) failedRecord {
	h.t.Helper()
	r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: endpoint, RawQuery: "strict=1", ContentType: contentType, Authorization: basic("secret-1", ""), Body: []byte(element)})
	var got struct {
		Imported int            `json:"num_records_imported"`
		Failed   []failedRecord `json:"failed_records"`
	}
	mustDecode(h.t, r.GetBody(), &got)
	if r.GetStatus() != 400 || got.Imported != 0 || len(got.Failed) != 1 {
		h.t.Fatalf("%.200s: answered %d %.300s", element, r.GetStatus(), r.GetBody())
	}
	if strings.Contains(string(r.GetBody()), "4711") {
		h.t.Errorf("the answer repeats a value: %.500s", r.GetBody())
	}
	return got.Failed[0]
}

const (
	twice   = "given twice in one object; send it once"
	notUTF8 = "not valid UTF-8; send texts encoded as UTF-8"
	tooDeep = "must be nested at most 3 levels deep"
)

func TestAFailedEventNamesThePropertyTheReasonAndTheFix(t *testing.T) {
	h := newHarness(t)
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + `"` + personal + `"` + strings.Repeat("}", n) }
	long := strings.Repeat("x", 300)
	for _, c := range []struct{ name, event, field, message string }{
		{"name given twice", `"a":"` + personal + `","a":2`, "properties.a", twice},
		{"name given twice in two spellings", `"a":"` + personal + `","\u0061":2`, "properties.a", twice},
		{"name given twice in an object", `"o":{"b":{"a":"` + personal + `","a":2}}`, "properties.o.b.a", twice},
		{"name given twice in a list", `"l":[0,{"a":"` + personal + `","a":2}]`, "properties.l.1.a", twice},
		{"time given twice", `"time":1`, "properties.time", twice},
		{"long name given twice", `"` + long + `":1,"` + long + `":2`, "properties.(long name)", twice},
		{"name given twice, far down", `"o":` + strings.Repeat(`{"a":`, 500) + `{"b":1,"b":2}` + strings.Repeat("}", 500), "properties.o.a.a.a", twice},
		{"event given twice", `{"event":"E","event":"` + personal + `","properties":{` + goodAll + `}}`, "event", twice},
		{"properties given twice", `{"event":"E","properties":{` + goodAll + `},"properties":{}}`, "properties", twice},
		{"another member given twice", `{"event":"E","meta":{"a":1,"a":2},"properties":{` + goodAll + `}}`, "meta.a", twice},

		{"nested 10,000 deep", `"o":` + deep(10_001), "properties.o", tooDeep},
		{"lists nested 10,000 deep", `"o":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000), "properties.o", tooDeep},
		{"nested 1,200 deep", `"o":` + deep(1_200), "properties.o", tooDeep},
		{"nested 10,000 deep, behind others", `"a":1,"b":{"c":[2]},"o":{"p":` + deep(10_001) + `}`, "properties.o", tooDeep},
		{"another member nested 10,000 deep", `{"event":"E","meta":` + deep(10_001) + `,"properties":{` + goodAll + `}}`, "meta.a", tooDeep},
		{"a list nested 10,000 deep as an event", strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000), "event", tooDeep},

		{"256 keys", `"o":{` + many(256, `"k#":1`) + `}`, "properties.o", "must have at most 255 keys or elements"},
		{"256 properties", many(253, `"p#":#`), "properties", "must have at most 255 properties"},
		{"list larger than 8 KB", `"l":["` + strings.Repeat("x", 8<<10) + `"]`, "properties.l", "must be at most 8 KB as JSON"},
		{"number out of range", `"n":[1e400]`, "properties.n", "a number is out of range; the greatest is about 1.8e308"},

		{"text not UTF-8", "\"a\":\"" + personal + "\xff\"", "properties.a", notUTF8},
		{"distinct_id not UTF-8", `{"event":"E","properties":{` + goodTime + `,` + goodKey + ",\"distinct_id\":\"" + personal + "\xff\"}}", "properties.distinct_id", notUTF8},
		{"$device_id not UTF-8", "\"$device_id\":\"" + personal + "\xff\"", "properties.$device_id", notUTF8},
		{"$user_id not UTF-8", "\"$user_id\":\"" + personal + "\xff\"", "properties.$user_id", notUTF8},
		{"$insert_id not UTF-8", `{"event":"E","properties":{` + goodTime + `,` + goodID + ",\"$insert_id\":\"" + personal + "\xff\"}}", "properties.$insert_id", notUTF8},
		{"event not UTF-8", "{\"event\":\"" + personal + "\xff\",\"properties\":{" + goodAll + `}}`, "event", notUTF8},
		{"distinct_id a list", `{"event":"E","properties":{` + goodTime + `,` + goodKey + `,"distinct_id":["` + personal + `"]}}`, "properties.distinct_id", "must be a string"},
		{"$insert_id a list", `{"event":"E","properties":{` + goodTime + `,` + goodID + `,"$insert_id":["` + personal + `"]}}`, "properties.$insert_id", "must be a non-empty string"},

		{"distinct_id missing", `{"event":"E","properties":{` + goodTime + `,` + goodKey + `}}`, "properties.distinct_id", `missing; send "" for an event of nobody`},
		{"distinct_id banned", `{"event":"E","properties":{` + goodTime + `,` + goodKey + `,"distinct_id":"none"}}`, "properties.distinct_id", "a placeholder such as null or unknown; send the user's own id"},
		{"distinct_id too long", `{"event":"E","properties":{` + goodTime + `,` + goodKey + `,"distinct_id":"` + long + `"}}`, "properties.distinct_id", "must be at most 255 bytes"},
		{"$insert_id missing", `{"event":"E","properties":{` + goodTime + `,` + goodID + `}}`, "properties.$insert_id", "missing; send an id of the event's own, the same when it is sent again"},
		{"$insert_id banned", `{"event":"E","properties":{` + goodTime + `,` + goodID + `,"$insert_id":"none"}}`, "properties.$insert_id", "a placeholder such as null or unknown; send an id of the event's own"},
		{"$insert_id too long", `{"event":"E","properties":{` + goodTime + `,` + goodID + `,"$insert_id":"` + long + `"}}`, "properties.$insert_id", "must be at most 36 bytes"},
		{"$insert_id with another character", `{"event":"E","properties":{` + goodTime + `,` + goodID + `,"$insert_id":"a_b"}}`, "properties.$insert_id", "must be of letters, digits and '-' only"},
		{"time as a date", `{"event":"E","properties":{` + goodID + `,` + goodKey + `,"time":"` + personal + `"}}`, "properties.time", "must be given in seconds or milliseconds since the epoch"},
		{"time in the future", `{"event":"E","properties":{` + goodID + `,` + goodKey + `,"time":4102444800}}`, "properties.time", "must not be more than an hour in the future"},
		{"an event that is none", `"` + personal + `"`, "event", "each element must be an object with event and properties"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			event := c.event
			switch {
			case strings.HasPrefix(event, "{"), strings.HasPrefix(event, "["), strings.HasSuffix(c.name, "none"):
			default:
				event = `{"event":"E","properties":{` + goodAll + `,` + c.event + `}}`
			}
			// The same in an array and as a line.
			for contentType, body := range map[string]string{"application/json": "[" + event + "]", "application/x-ndjson": event} {
				if got := h.failing(imports, contentType, body); got.Field != c.field || got.Message != "'"+c.field+"' is invalid: "+c.message {
					t.Errorf("%s: failed with %.300s: %.300s, want %s: %s", contentType, got.Field, got.Message, c.field, c.message)
				}
			}
		})
	}
}

func TestABrokenLineSaysWhere(t *testing.T) {
	h := newHarness(t)
	good := `{"event":"E","properties":{` + goodAll + `}}`
	for _, c := range []struct{ name, line, message string }{
		{"cut off", `{"event":"E"`, "not valid JSON near byte 12 of the line"},
		{"no JSON", `{"event":` + personal, "not valid JSON near byte 9 of the line"},
		{"two in a line", good + good, "the line goes on after its JSON value; send one event a line"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			if got := h.failing(imports, "application/x-ndjson", c.line); got.Field != "event" || got.Message != "'event' is invalid: "+c.message {
				t.Errorf("failed with %+v, want %s", got, c.message)
			}
		})
	}
}

func TestAFailedUpdateNamesThePropertyTheReasonAndTheFix(t *testing.T) {
	h := newHarness(t)
	const (
		user  = `"$token":"tok-1","$distinct_id":"u",`
		group = `"$token":"tok-1","$group_key":"company","$group_id":"acme",`
		both  = "a group needs $group_key and $group_id"
	)
	for _, c := range []struct {
		name           string
		endpoint       ingestionv1.IngestRawRequest_Endpoint
		update         string
		field, message string
	}{
		{"name given twice", engage, user + `"$set":{"a":"` + personal + `","a":2}`, "$set.a", twice},
		{"name given twice in an object", engage, user + `"$set":{"o":{"a":"` + personal + `","a":2}}`, "$set.o.a", twice},
		{"operation given twice", engage, user + `"$set":{"a":"` + personal + `"},"$set":{"b":1}`, "$set", twice},
		{"nested 10,000 deep", engage, user + `"$set":{"b":1,"a":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`, "$set.a", tooDeep},
		{"depth 4", engage, user + `"$set":{"a":{"b":{"c":{"d":{}}}}}`, "$set.a", tooDeep},
		{"text not UTF-8", engage, user + "\"$set\":{\"b\":1,\"a\":\"" + personal + "\xff\"}", "$set.a", notUTF8},
		{"property name not UTF-8", engage, user + "\"$set\":{\"b\":1,\"" + personal + "\xff\":1}", "$set", "a property name is " + notUTF8},
		{"name in $unset not UTF-8", engage, user + "\"$unset\":[\"" + personal + "\xff\"]", "$unset", notUTF8},
		{"$distinct_id not UTF-8", engage, `"$token":"tok-1","$distinct_id":"` + personal + "\xff" + `","$set":{"a":1}`, "$distinct_id", notUTF8},
		{"$distinct_id a list", engage, `"$token":"tok-1","$distinct_id":["` + personal + `"],"$set":{"a":1}`, "$distinct_id", "must be a non-empty string"},
		{"$distinct_id banned", engage, `"$token":"tok-1","$distinct_id":"none","$set":{"a":1}`, "$distinct_id", "a placeholder such as null or unknown; send the id itself"},
		{"number out of range", engage, user + `"$set":{"a":1e400}`, "$set.a", "a number is out of range; the greatest is about 1.8e308"},

		{"group without its key", groups, `"$token":"tok-1","$group_id":"acme","$set":{"a":1}`, "$group_key", "missing; " + both},
		{"group without its id", groups, `"$token":"tok-1","$group_key":"company","$set":{"a":1}`, "$group_id", "missing; " + both},
		{"group without either", groups, `"$token":"tok-1","$set":{"a":1}`, "$group_key", "missing; " + both},
		{"user on /groups", groups, user + `"$set":{"a":1}`, "$group_key", "missing; " + both},
		{"group without its id on /engage", engage, `"$token":"tok-1","$group_key":"company","$set":{"a":1}`, "$group_id", "missing; " + both},
		{"$group_id empty", groups, `"$token":"tok-1","$group_key":"company","$group_id":"","$set":{"a":1}`, "$group_id", "must be a non-empty string"},
		{"$group_id not UTF-8", groups, `"$token":"tok-1","$group_key":"company","$group_id":"` + "\xff" + `","$set":{"a":1}`, "$group_id", notUTF8},
		{"name given twice in a group", groups, group + `"$set":{"a":1,"a":2}`, "$set.a", twice},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			update := "{" + c.update + "}"
			for contentType, body := range map[string]string{"application/json": "[" + update + "]", "application/x-ndjson": update} {
				if got := h.failing(c.endpoint, contentType, body); got.Field != c.field || got.Message != "'"+c.field+"' is invalid: "+c.message {
					t.Errorf("%s: failed with %.300s: %.300s, want %s: %s", contentType, got.Field, got.Message, c.field, c.message)
				}
			}
		})
	}
}
