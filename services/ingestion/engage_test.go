package ingestion_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

func TestModifiersOfAProfileUpdate(t *testing.T) {
	seen := func(at time.Time) string { return at.Format("2006-01-02T15:04:05") }
	for i, c := range []struct {
		name, modifier string
		touched        bool
	}{
		{"without", ``, true},
		{"$ignore_time true", `"$ignore_time":true,`, false},
		{"$ignore_time as text", `"$ignore_time":"true",`, false},
		{"$ignore_time 1", `"$ignore_time":1,`, false},
		{"$ignore_time false", `"$ignore_time":false,`, true},
		{"$ignore_time false as text", `"$ignore_time":"false",`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(t)
			h.engage(1, set("u", props{"a": -1}))
			h.tick(time.Hour)
			r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: engage, ContentType: "application/json", Body: fmt.Appendf(nil, `{"$token":"tok-1","$distinct_id":"u",%s"$set":{"a":%d}}`, c.modifier, i)})
			want := seen(start)
			if c.touched {
				want = seen(h.clock())
			}
			if got := h.profile(1, "u"); string(r.GetBody()) != "1" || got["a"] != float64(i) || got["$last_seen"] != want {
				t.Errorf("answered %s, profile %v, want $last_seen %s", r.GetBody(), got, want)
			}
		})
	}
}

func TestDeleteWithIgnoreAliasSparesTheUserBehindTheAlias(t *testing.T) {
	for modifier, gone := range map[string]bool{`true`: false, `"true"`: false, `1`: false, `false`: true, `"false"`: true} {
		h := newHarness(t)
		h.engage(2, set("u", props{"a": 1}))
		h.importStrict(2, ev("$create_alias", start, "u", "c1", props{"alias": "nick"}))
		r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: engage, ContentType: "application/json", Body: []byte(`{"$token":"tok-2","$distinct_id":"nick","$ignore_alias":` + modifier + `,"$delete":""}`)})
		if string(r.GetBody()) != "1" || (h.profile(2, "u") == nil) != gone {
			t.Errorf("$ignore_alias %s: answered %s, profile %v", modifier, r.GetBody(), h.profile(2, "u"))
		}
	}
}

// What a profile update that can't be applied answers, and that those beside it are.
func TestEachRuleOfAProfileUpdate(t *testing.T) {
	h := newHarness(t)
	h.engage(1, set("typed", props{"text": "x", "number": 1, "list": []any{"a"}}))
	many := func(n int) string { return strings.TrimSuffix(strings.Repeat(`"x",`, n), ",") }
	for i, c := range []struct{ name, update, field string }{
		{"not an object", `7`, "$"},
		{"token unknown", `{"$token":"nope","$distinct_id":"ID","$set":{"a":1}}`, "$token"},
		{"distinct_id missing", `{"$token":"tok-1","$set":{"a":1}}`, "$distinct_id"},
		{"distinct_id empty", `{"$token":"tok-1","$distinct_id":"","$set":{"a":1}}`, "$distinct_id"},
		{"distinct_id banned", `{"$token":"tok-1","$distinct_id":"undefined","$set":{"a":1}}`, "$distinct_id"},
		{"distinct_id longer than 255 bytes", `{"$token":"tok-1","$distinct_id":"` + strings.Repeat("x", 256) + `","$set":{"a":1}}`, "$distinct_id"},
		{"$set not an object", `{"$token":"tok-1","$distinct_id":"ID","$set":[1]}`, "$set"},
		{"$unset not a list", `{"$token":"tok-1","$distinct_id":"ID","$unset":{"a":1}}`, "$unset"},
		{"$add of a text", `{"$token":"tok-1","$distinct_id":"ID","$add":{"a":"1"}}`, "$add.a"},
		{"$add to a text", `{"$token":"tok-1","$distinct_id":"typed","$add":{"text":1}}`, "$add.text"},
		{"$append to a number", `{"$token":"tok-1","$distinct_id":"typed","$append":{"number":1}}`, "$append.number"},
		{"$union with a number", `{"$token":"tok-1","$distinct_id":"typed","$union":{"number":[1]}}`, "$union.number"},
		{"$union of objects", `{"$token":"tok-1","$distinct_id":"ID","$union":{"l":[{}]}}`, "$union.l"},
		{"$remove of a list", `{"$token":"tok-1","$distinct_id":"typed","$remove":{"list":["a"]}}`, "$remove.list"},
		{"$remove from a text", `{"$token":"tok-1","$distinct_id":"typed","$remove":{"text":"x"}}`, "$remove.text"},
		{"text not UTF-8", `{"$token":"tok-1","$distinct_id":"ID","$set":{"a":"` + "\xff" + `"}}`, "$set.a"},
		{"number out of range", `{"$token":"tok-1","$distinct_id":"ID","$set":{"a":1e400}}`, "$set.a"},
		{"depth 4", `{"$token":"tok-1","$distinct_id":"ID","$set":{"a":{"b":{"c":{"d":{}}}}}}`, "$set.a"},
		{"list larger than 256 KB", `{"$token":"tok-1","$distinct_id":"ID","$set":{"a":[` + many(70_000) + `]}}`, "$set.a"},
		{"update larger than 1 MB", `{"$token":"tok-1","$distinct_id":"ID","$set":{"a":"` + strings.Repeat("x", 1<<20) + `"}}`, "$"},
		{"name given twice", `{"$token":"tok-1","$distinct_id":"ID","$set":{"a":1,"a":2}}`, "$set.a"},
		{"nested 10,000 deep", `{"$token":"tok-1","$distinct_id":"ID","$set":{"a":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}}`, "$set.a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			id, first, last := fmt.Sprint("id", i), fmt.Sprint("first", i), fmt.Sprint("last", i)
			good := func(id string) string { return `{"$token":"tok-1","$distinct_id":"` + id + `","$set":{"a":1}}` }
			body := []byte("[" + good(first) + "," + strings.ReplaceAll(c.update, "ID", id) + "," + good(last) + "]")
			r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: engage, RawQuery: "strict=1", ContentType: "application/json", Body: body})
			want := fmt.Sprintf(`"failed_records":[{"index":1,"insert_id":"","$insert_id":"","field":%q,"message":"'%s' is invalid: `, c.field, c.field)
			if r.GetStatus() != 400 || !strings.Contains(string(r.GetBody()), want) || !strings.Contains(string(r.GetBody()), `"num_records_imported":2,`) {
				t.Errorf("%.300s: answered %d %s, want …%s…", body, r.GetStatus(), r.GetBody(), want)
			}
			if h.profile(1, first) == nil || h.profile(1, last) == nil || h.profile(1, id) != nil {
				t.Errorf("profiles %v, %v, %v", h.profile(1, first), h.profile(1, id), h.profile(1, last))
			}
			if got := h.profile(1, "typed"); got["text"] != "x" || got["number"] != 1.0 || !reflect.DeepEqual(got["list"], []any{"a"}) {
				t.Errorf("the property changed: %v", got)
			}
			// The other forms of the same answer: some of it was good, so it is a 1.
			for query, want := range map[string]string{"": "1", "verbose=1": `'` + c.field + `' is invalid: `} {
				r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: engage, RawQuery: query, ContentType: "application/json", Body: body})
				if r.GetStatus() != 200 || !strings.Contains(string(r.GetBody()), want) {
					t.Errorf("%q: answered %d %s, want …%s…", query, r.GetStatus(), r.GetBody(), want)
				}
			}
		})
	}
}

func TestProfileRequestsInEveryForm(t *testing.T) {
	h := newHarness(t)
	update := func(id string) string { return `{"$token":"tok-1","$distinct_id":"` + id + `","$set":{"a":1}}` }
	group := `{"$token":"tok-1","$group_key":"company","$group_id":"acme","$set":{"a":1}}`
	formType := "application/x-www-form-urlencoded"
	for i, c := range []struct {
		name   string
		req    *ingestionv1.IngestRawRequest
		want   string
		stored bool
	}{
		{"go: JSON array", &ingestionv1.IngestRawRequest{Endpoint: engage, ContentType: "application/json", Body: []byte("[" + update("form0") + "]")}, "1", true},
		{"node: GET with base64 of one object", &ingestionv1.IngestRawRequest{Endpoint: engage, Method: "GET", RawQuery: "ip=0&verbose=0&data=" + base64.StdEncoding.EncodeToString([]byte(update("form1")))}, "1", true},
		{"python: form of a list", &ingestionv1.IngestRawRequest{Endpoint: engage, ContentType: formType, Body: form("data", "["+update("form2")+"]", "verbose", "1")}, `{"error":null,"status":1}`, true},
		{"segment: form of one object", &ingestionv1.IngestRawRequest{Endpoint: engage, ContentType: formType, Body: form("data", update("form3"))}, "1", true},
		{"callback", &ingestionv1.IngestRawRequest{Endpoint: engage, RawQuery: "callback=f", ContentType: "application/json", Body: []byte(update("form4"))}, "f(1)", true},
		{"gzip", &ingestionv1.IngestRawRequest{Endpoint: engage, ContentType: "application/json", ContentEncoding: "gzip", Body: gz(t, []byte(update("form5")))}, "1", true},
		{"strict and good", &ingestionv1.IngestRawRequest{Endpoint: engage, RawQuery: "strict=1", ContentType: "application/json", Body: []byte(update("form6"))}, "1", true},
		{"nothing good", &ingestionv1.IngestRawRequest{Endpoint: engage, ContentType: "application/json", Body: []byte(`[{"$set":{"a":1}}]`)}, "0", false},
		{"nothing good, strict", &ingestionv1.IngestRawRequest{Endpoint: engage, RawQuery: "strict=1", ContentType: "application/json", Body: []byte(`[{"$set":{"a":1}}]`)}, `{"code":400,"error":"some data points in the request failed validation","status":"Bad Request","num_records_imported":0,"failed_records":[{"index":0,"insert_id":"","$insert_id":"","field":"$distinct_id","message":"'$distinct_id' is invalid: missing"}]}`, false},
		{"rudderstack: a group without its key", &ingestionv1.IngestRawRequest{Endpoint: groups, RawQuery: "verbose=1", ContentType: "application/json", Body: []byte(`[{"$token":"tok-1","$set":{"a":1}}]`)}, `{"error":"'$group_key' is invalid: missing; a group needs $group_key and $group_id","status":0}`, false},
		{"go and segment: a group", &ingestionv1.IngestRawRequest{Endpoint: groups, ContentType: formType, Body: form("data", group)}, "1", false},
		{"node: a group by GET", &ingestionv1.IngestRawRequest{Endpoint: groups, Method: "GET", RawQuery: "verbose=1&" + string(form("data", group))}, `{"error":null,"status":1}`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			r := h.raw(c.req)
			if string(r.GetBody()) != c.want {
				t.Errorf("answered %d %s, want %s", r.GetStatus(), r.GetBody(), c.want)
			}
			if p := h.profile(1, fmt.Sprint("form", i)); (p["a"] == 1.0) != c.stored {
				t.Errorf("profile %v", p)
			}
		})
	}
}

// group is a group's properties, nil when there is no profile.
func (h *harness) group(key, id string) map[string]any {
	h.t.Helper()
	r, err := h.data.GetGroupProfile(context.Background(), &ingestionv1.GetGroupProfileRequest{Parent: "projects/1", GroupKey: key, GroupId: id})
	if err != nil && strings.Contains(err.Error(), "no group has this group_key and group_id") {
		return nil
	}
	if err != nil {
		h.t.Fatal(err)
	}
	if p := r.GetGroupProfile(); p.GetGroupKey() != key || p.GetGroupId() != id || !p.GetUpdateTime().AsTime().Equal(h.clock()) {
		h.t.Errorf("group profile %v", p)
	}
	return r.GetGroupProfile().GetProperties().AsMap()
}

func TestGroupOperations(t *testing.T) {
	type list = []any
	h := newHarness(t)
	for i, c := range []struct {
		name   string
		ops    []props
		want   map[string]any
		answer string // of the last one
	}{
		{"$set", []props{{"$set": props{"a": 1}}, {"$set": props{"a": 2, "b": "x"}}}, props{"a": 2.0, "b": "x"}, "1"},
		{"$set_once", []props{{"$set_once": props{"a": 1}}, {"$set_once": props{"a": 2}}}, props{"a": 1.0}, "1"},
		{"$union", []props{{"$union": props{"l": list{"a"}}}, {"$union": props{"l": list{"a", "b"}}}}, props{"l": list{"a", "b"}}, "1"},
		{"$remove", []props{{"$set": props{"l": list{"a", "b", "a"}}}, {"$remove": props{"l": "a"}}}, props{"l": list{"b"}}, "1"},
		{"$unset", []props{{"$set": props{"a": 1, "b": 2}}, {"$unset": list{"a"}}}, props{"b": 2.0}, "1"},
		{"$unset of all leaves no profile", []props{{"$set": props{"a": 1}, "$ignore_time": true}, {"$unset": list{"a"}, "$ignore_time": true}}, nil, "1"},
		{"$delete", []props{{"$set": props{"a": 1}}, {"$delete": ""}}, nil, "1"},
		{"$add is taken", []props{{"$set": props{"a": 1}}, {"$add": props{"a": 2}}}, props{"a": 3.0}, "1"},
		{"$append is refused", []props{{"$set": props{"l": list{"a"}}}, {"$append": props{"l": "b"}}}, props{"l": list{"a"}}, "0"},
		{"$append is refused, the rest is applied", []props{{"$append": props{"l": "b"}, "$set": props{"a": 1}}}, props{"a": 1.0}, "1"},
		{"$remove does not create", []props{{"$remove": props{"l": "a"}}}, nil, "1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			id, answer := fmt.Sprint("acme", i), ""
			for _, op := range c.ops {
				op["$token"], op["$group_key"], op["$group_id"] = "tok-1", "company", id
				answer = string(h.raw(&ingestionv1.IngestRawRequest{Endpoint: groups, ContentType: "application/json", Body: toJSON(t, []props{op})}).GetBody())
			}
			got := h.group("company", id)
			delete(got, "$last_seen")
			if answer != c.answer || !reflect.DeepEqual(got, c.want) {
				t.Errorf("answered %s, profile %v, want %s, %v", answer, got, c.answer, c.want)
			}
		})
	}
}

func TestGroupsKeepTheirProfilesApartFromUsersAndArePaged(t *testing.T) {
	h := newHarness(t)
	var all []props
	for _, key := range []string{"company", "team"} {
		for i := range 3 {
			all = append(all, props{"$token": "tok-1", "$group_key": key, "$group_id": fmt.Sprintf("%s:%d/é", key, i), "$set": props{"n": i}})
		}
	}
	if r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: groups, ContentType: "application/json", Body: toJSON(t, all)}); string(r.GetBody()) != "1" {
		t.Fatalf("answered %s", r.GetBody())
	}
	r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: groups, RawQuery: "verbose=1", ContentType: "application/json", Body: toJSON(t, []props{{"$token": "tok-1", "$distinct_id": "u", "$set": props{"n": 5}}})})
	if !strings.Contains(string(r.GetBody()), `"status":0`) || h.profile(1, "u") != nil || h.profile(1, "company:0/é") != nil {
		t.Errorf("a user on /groups: %s", r.GetBody())
	}
	pages := func(only string, size int32) (out []string) {
		t.Helper()
		for token := ""; ; {
			p, err := h.data.ListGroupProfiles(context.Background(), &ingestionv1.ListGroupProfilesRequest{Parent: "projects/1", GroupKey: only, PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range p.GetGroupProfiles() {
				out = append(out, fmt.Sprint(g.GetGroupKey(), " ", g.GetGroupId(), " ", g.GetProperties().AsMap()["n"]))
			}
			if token = p.GetNextPageToken(); token == "" {
				return out
			}
		}
	}
	want := []string{"company company:0/é 0", "company company:1/é 1", "company company:2/é 2", "team team:0/é 0", "team team:1/é 1", "team team:2/é 2"}
	for size := range int32(8) {
		if got := pages("", size); !reflect.DeepEqual(got, want) {
			t.Errorf("pages of %d: %v", size, got)
		}
		if got := pages("team", size); !reflect.DeepEqual(got, want[3:]) {
			t.Errorf("teams in pages of %d: %v", size, got)
		}
	}
	if _, err := h.data.ListGroupProfiles(context.Background(), &ingestionv1.ListGroupProfilesRequest{Parent: "projects/1", PageToken: "x"}); err == nil {
		t.Error("a token of nobody's was taken")
	}
	if other, err := h.data.ListGroupProfiles(context.Background(), &ingestionv1.ListGroupProfilesRequest{Parent: "projects/2"}); err != nil || len(other.GetGroupProfiles()) != 0 {
		t.Errorf("another project's groups: %v, %v", other, err)
	}
}
