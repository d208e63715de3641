package ingestion_test

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// profile is a user's properties, nil when there is no profile.
func (h *harness) profile(projectID int64, id string) map[string]any {
	h.t.Helper()
	r, err := h.data.GetProfile(context.Background(), &ingestionv1.GetProfileRequest{Parent: fmt.Sprintf("projects/%d", projectID), DistinctId: id})
	if err != nil {
		return nil
	}
	return r.GetProfile().GetProperties().AsMap()
}

func TestProfileOperations(t *testing.T) {
	type list = []any
	seen := start.Format("2006-01-02T15:04:05")
	h := newHarness(t)
	for i, c := range []struct {
		name string
		ops  []props
		want map[string]any
	}{
		{"$set overwrites", []props{{"$set": props{"a": 1, "b": "x"}}, {"$set": props{"a": "two"}}}, props{"a": "two", "b": "x"}},
		{"$set_once keeps", []props{{"$set_once": props{"a": 1}}, {"$set_once": props{"a": 2, "b": 3}}}, props{"a": 1.0, "b": 3.0}},
		{"$add starts at 0 and takes negatives", []props{{"$add": props{"a": 5}}, {"$add": props{"a": -7, "b": 1.5}}, {"$add": props{"b": 1}}}, props{"a": -2.0, "b": 2.5}},
		{"$append does not look for duplicates", []props{{"$append": props{"l": "x"}}, {"$append": props{"l": "x"}}, {"$append": props{"l": props{"$amount": 3}}}}, props{"l": list{"x", "x", props{"$amount": 3.0}}}},
		{"$union adds what is missing", []props{{"$union": props{"l": list{"a", 1, "a"}}}, {"$union": props{"l": list{1.0, "b"}}}, {"$union": props{"l": "c"}}}, props{"l": list{"a", 1.0, "b", "c"}}},
		{"$remove removes all occurrences", []props{{"$set": props{"l": list{"a", "b", "a"}}}, {"$remove": props{"l": "a", "none": 1}}}, props{"l": list{"b"}}},
		{"$unset", []props{{"$set": props{"a": 1, "b": 2}}, {"$unset": list{"a", "none"}}}, props{"b": 2.0}},
		{"$delete excludes all others", []props{{"$set": props{"a": 1}}, {"$delete": "", "$set": props{"a": 2}}}, nil},
		{"several in one object, in order", []props{{"$set": props{"a": 1, "l": list{"x"}}}, {"$unset": list{"a"}, "$set": props{"b": 1}, "$set_once": props{"a": 9, "b": 9}, "$add": props{"b": 2}, "$append": props{"l": "y"}, "$union": props{"l": list{"z"}}, "$remove": props{"l": "x"}}}, props{"a": 9.0, "b": 3.0, "l": list{"y", "z"}}},
		{"$remove and $unset make no profile", []props{{"$remove": props{"a": 1}}, {"$unset": list{"a"}}}, nil},
		{"$union of a bare value makes a list", []props{{"$union": props{"l": "c"}}}, props{"l": list{"c"}}},
		{"$union compares numbers by value", []props{{"$union": props{"l": list{2, 2.0, "2"}}}}, props{"l": list{2.0, "2"}}},
		{"$append to an absent property makes a list", []props{{"$append": props{"l": 1}}}, props{"l": list{1.0}}},
		{"$transactions as Node sends them", []props{{"$append": props{"$transactions": props{"$amount": 5, "$time": "2026-03-31T12:00:00"}}}, {"$set": props{"$transactions": list{}}}}, props{"$transactions": list{}}},
		{"$unset comes before $set in one object", []props{{"$set": props{"a": 1}}, {"$set": props{"a": 2}, "$unset": list{"a"}}}, props{"a": 2.0}},
		{"$delete as each client sends it", []props{{"$set": props{"a": 1}}, {"$delete": "null"}, {"$set": props{"a": 1}}, {"$delete": ""}, {"$set": props{"a": 1}}, {"$delete": "u"}}, nil},
		{"$delete, then a new profile", []props{{"$set": props{"a": 1}}, {"$delete": ""}, {"$set": props{"b": 1}}}, props{"b": 1.0}},
		{"$set creates", []props{{"$set": props{"a": 1}}}, props{"a": 1.0}},
		{"$set_once creates", []props{{"$set_once": props{"a": 1}}}, props{"a": 1.0}},
		{"$add creates", []props{{"$add": props{"a": 1}}}, props{"a": 1.0}},
		{"$remove does not create", []props{{"$remove": props{"a": 1}}}, nil},
		{"$unset does not create", []props{{"$unset": list{"a"}}}, nil},
		{"names are cut to 255 characters", []props{{"$set": props{strings.Repeat("ü", 300): 1}}}, props{strings.Repeat("ü", 255): 1.0}},
		{"places are not looked up or stored", []props{{"$ip": "203.0.113.9", "$latitude": 52.5, "$longitude": 13.4, "$set": props{"a": 1}}}, props{"a": 1.0}},
		{"an address inside an operation, as Go sends it, is not stored", []props{{"$ip": "203.0.113.9", "$set": props{"a": 1, "$ip": "203.0.113.9"}}, {"$set_once": props{"b": 1, "$ip": "203.0.113.9"}}}, props{"a": 1.0, "b": 1.0}},
		{"the browser's envelope", []props{{"$device_id": "d", "$user_id": "u", "$had_persisted_distinct_id": true, "$set": props{"a": 1}}}, props{"a": 1.0}},
		{"$time has no effect", []props{{"$time": 1700000000, "$set": props{"a": 1}}}, props{"a": 1.0}},
		{"$ignore_alias as text, with another operation", []props{{"$ignore_alias": "true", "$set": props{"a": 1}}, {"$ignore_alias": "false", "$set": props{"b": 1}}}, props{"a": 1.0, "b": 1.0}},
		{"explicit places are ordinary properties", []props{{"$set": props{"$city": "Ulm", "$region": "BW", "$country_code": "DE", "$timezone": "Europe/Berlin"}}}, props{"$city": "Ulm", "$region": "BW", "$country_code": "DE", "$timezone": "Europe/Berlin"}},
		{"large integers stay exact", []props{{"$set": props{"a": "9007199254740993"}}}, props{"a": "9007199254740993"}},
		{"texts are cut to 255 characters", []props{{"$set": props{"a": strings.Repeat("ü", 300)}}}, props{"a": strings.Repeat("ü", 255)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			id := fmt.Sprint("u", i)
			for _, op := range c.ops {
				op["$distinct_id"] = id
				h.engage(1, op)
			}
			got := h.profile(1, id)
			if c.want != nil {
				c.want["$last_seen"] = seen
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("profile %v, want %v", got, c.want)
			}
		})
	}
}

func TestProfileModifiersAndMismatches(t *testing.T) {
	h := newHarness(t)
	h.engage(1, set("u", props{"name": "x", "n": 1}))
	h.tick(time.Hour)
	h.engage(1, props{"$distinct_id": "u", "$ignore_time": "true", "$set": props{"n": 2}})
	if got := h.profile(1, "u")["$last_seen"]; got != start.Format("2006-01-02T15:04:05") {
		t.Errorf("$ignore_time: last seen %v", got)
	}
	// A mismatch skips its property, is reported, and lets the rest through.
	body := toJSON(t, []props{
		{"$token": "tok-1", "$distinct_id": "u", "$add": props{"name": 1, "n": 5}, "$append": props{"n": 1}},
		{"$token": "tok-1", "$distinct_id": "u", "$set": "no object"},
		{"$token": "tok-1", "$set": props{"a": 1}},
		{"$token": "nope", "$distinct_id": "u", "$set": props{"a": 1}},
		{"$token": "tok-1", "$distinct_id": "null", "$set": props{"a": 1}},
		{"$token": "tok-1", "$distinct_id": "u"},
	})
	r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: engage, RawQuery: "strict=1", ContentType: "application/json", Body: body})
	if r.GetStatus() != 400 {
		t.Errorf("strict: %d %s", r.GetStatus(), r.GetBody())
	}
	for _, field := range []string{`"field":"$add.name"`, `"field":"$append.n"`, `"index":1,"insert_id":"","$insert_id":"","field":"$set"`, `"index":2,"insert_id":"","$insert_id":"","field":"$distinct_id"`, `"field":"$token"`, `"num_records_imported":1`} {
		if !strings.Contains(string(r.GetBody()), field) {
			t.Errorf("the answer lacks %s: %s", field, r.GetBody())
		}
	}
	if p := h.profile(1, "u"); p["n"] != 7.0 || p["name"] != "x" {
		t.Errorf("profile %v", p)
	}
	r = h.raw(&ingestionv1.IngestRawRequest{Endpoint: engage, ContentType: "application/json", Body: []byte(`[{"$token":"tok-1","$distinct_id":"u","$set":{"broken":1}},`)})
	if string(r.GetBody()) != "0" || h.profile(1, "u")["broken"] != nil {
		t.Errorf("broken JSON: %s, profile %v", r.GetBody(), h.profile(1, "u"))
	}
	// Limits.
	many := props{}
	for i := range 2005 {
		many[fmt.Sprint("p", i)] = i
	}
	r = h.raw(&ingestionv1.IngestRawRequest{Endpoint: engage, RawQuery: "strict=1", ContentType: "application/json", Body: toJSON(t, props{"$token": "tok-1", "$distinct_id": "big", "$ignore_time": true, "$set": many})})
	if n := len(h.profile(1, "big")); n != 2000 || r.GetStatus() != 400 {
		t.Errorf("a profile of %d properties, answer %d", n, r.GetStatus())
	}
}

func TestAnUpdateWithoutEffectNamesWhatIsWrong(t *testing.T) {
	h := newHarness(t)
	const list = "$set, $set_once, $add, $append, $union, $remove, $unset, $delete"
	for _, c := range []struct {
		endpoint             ingestionv1.IngestRawRequest_Endpoint
		body, field, message string
	}{
		{engage, `{}`, "$distinct_id", "missing"},
		{engage, `{"$token":"tok-1"}`, "$distinct_id", "missing"},
		{engage, `{"$token":"tok-1","$sett":{"a":1}}`, "$distinct_id", "missing"},
		{engage, `{"$distinct_id":"u"}`, "$token", "missing"},
		{engage, `{"$distinct_id":"u","$sett":{"a":1}}`, "$token", "missing"},
		{engage, `{"$distinct_id":"u","$set":{"a":1}}`, "$token", "missing"},
		{engage, `{"$token":"tok-1","$distinct_id":"u","$ip":"0","$time":1}`, "$", "no operation; one of " + list + " is required"},
		{engage, `{"$token":"tok-1","$distinct_id":"u","$ip":"0","$sett":{"a":1}}`, "$sett", "not an operation; one of " + list + " is required"},
		{engage, `{"$token":"tok-1","$distinct_id":"u","set":{"a":1}}`, "set", "not an operation; one of " + list + " is required"},
		{engage, `{"$token":"tok-1","$distinct_id":"u","$set":{}}`, "$set", "names no property"},
		{groups, `{"$token":"tok-1","$set":{"a":1}}`, "$group_key", "missing; a group needs $group_key and $group_id"},
	} {
		message := "'" + c.field + "' is invalid: " + c.message
		for query, want := range map[string]string{
			"strict=1":  fmt.Sprintf(`"field":%q,"message":%q`, c.field, message),
			"verbose=1": fmt.Sprintf(`"error":%q`, message),
		} {
			r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: c.endpoint, RawQuery: query, ContentType: "application/json", Body: []byte(c.body)})
			if !strings.Contains(string(r.GetBody()), want) {
				t.Errorf("%s %s: answered %s, want %s", query, c.body, r.GetBody(), want)
			}
		}
	}
	r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: engage, RawQuery: "strict=1", ContentType: "application/json", Body: []byte(`{"$token":"tok-1","$distinct_id":"u","$new":1,"$set":{"a":1}}`)})
	if r.GetStatus() != 200 {
		t.Errorf("an unknown key beside an operation: %s", r.GetBody())
	}
}

func TestTypedProfileUpdatesAndPages(t *testing.T) {
	h := newHarness(t)
	one, err := structpb.NewStruct(map[string]any{"n": 1})
	if err != nil {
		t.Fatal(err)
	}
	text, err := structpb.NewStruct(map[string]any{"n": "one"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := h.in.UpdateProfiles(context.Background(), &ingestionv1.UpdateProfilesRequest{Parent: "projects/1", Updates: []*ingestionv1.ProfileUpdate{
		{DistinctId: "a", Set: one}, {DistinctId: "b", Add: one}, {DistinctId: "c", Add: text}, {DistinctId: "d"},
	}})
	if err != nil || r.GetApplied() != 2 || len(r.GetFailedRecords()) != 2 {
		t.Errorf("%v, %v", r, err)
	}
	var got []string
	token := ""
	for {
		p, err := h.data.ListProfiles(context.Background(), &ingestionv1.ListProfilesRequest{Parent: "projects/1", PageSize: 1, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range p.GetProfiles() {
			got = append(got, x.GetDistinctId())
		}
		if token = p.GetNextPageToken(); token == "" {
			break
		}
	}
	if strings.Join(got, " ") != "a b" {
		t.Errorf("pages %v", got)
	}
	if _, err := h.data.GetProfile(context.Background(), &ingestionv1.GetProfileRequest{Parent: "projects/1", DistinctId: "zoe@example.org"}); status.Code(err) == codes.OK || strings.Contains(err.Error(), "zoe") {
		t.Errorf("an unknown profile: %v", err)
	}
}

func TestTheProjectionFollowsTheLedgerAndIsRebuiltFromIt(t *testing.T) {
	h := newHarness(t)
	var all []props
	for i := range 300 {
		all = append(all, set(fmt.Sprint("u", i), props{"n": i, "tags": []string{"t"}}))
	}
	h.engage(1, all...)
	isSet := property("n", typeNumber, opIsSet)
	before := h.evaluate(1, isSet)
	h.engage(1, props{"$distinct_id": "u7", "$delete": ""}, props{"$distinct_id": "u8", "$unset": []string{"n", "tags", "$last_seen"}}, set("u9", props{"n": "text"}))
	after := h.evaluate(1, isSet, property("n", typeNumber, opEquals, 9))
	if before.leaves[0].GetCardinality() != 300 || after.leaves[0].GetCardinality() != 298 || after.leaves[1].GetCardinality() != 0 || after.mark.GetProfileSeq() != before.mark.GetProfileSeq()+3 {
		t.Errorf("before %d, after %d", before.leaves[0].GetCardinality(), after.leaves[0].GetCardinality())
	}
	h.restart()
	r, err := h.data.RebuildProjection(context.Background(), &ingestionv1.RebuildProjectionRequest{Parent: "projects/1"})
	if err != nil || r.GetProfiles() != int64(after.identified.GetCardinality()) {
		t.Errorf("rebuilt %v, %v; identified before %d", r, err, after.identified.GetCardinality())
	}
	again := h.evaluate(1, isSet)
	if !again.leaves[0].Equals(after.leaves[0]) || !again.identified.Equals(after.identified) || again.mark.GetProfileSeq() != after.mark.GetProfileSeq() {
		t.Error("the rebuilt projection differs")
	}
}
