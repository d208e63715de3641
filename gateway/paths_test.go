package gateway_test

import (
	"net/http"
	"testing"

	"github.com/cohortbridge/cohortbridge/gateway"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// browser is what a browser sends from a page of another site.
var browser = map[string]string{"Origin": "https://shop.example"}

func wantReadable(t *testing.T, what string, resp *http.Response) {
	t.Helper()
	if resp.Header.Get("Access-Control-Allow-Origin") != browser["Origin"] || resp.Header.Get("Access-Control-Allow-Credentials") != "true" {
		t.Errorf("%s: a browser can't read the answer: %d %v", what, resp.StatusCode, resp.Header)
	}
}

func TestMixpanelsRoutesAreServedHoweverManySlashesTheyHave(t *testing.T) {
	s := &services{answer: &ingestionv1.IngestRawResponse{Status: 200, Body: []byte("1")}, token: "tok"}
	url := serve(t, s, gateway.Config{})
	for path, endpoint := range map[string]ingestionv1.IngestRawRequest_Endpoint{
		"//track/": 1, "//track": 1, "/track//": 1, "///track///": 1, "//import": 2, "/import//": 2, "//engage/": 3, "/engage//": 3, "//groups/": 4, "/./track/": 1, "/x/../track/": 1,
	} {
		s.got = nil
		resp, body := call(t, "POST", url+path+"?verbose=1", "{}", browser)
		if resp.StatusCode != 200 || body != "1" || s.got.GetEndpoint() != endpoint || s.got.GetRawQuery() != "verbose=1" {
			t.Errorf("POST %s: %d %v %s, handed on %v", path, resp.StatusCode, resp.Header, body, s.got)
		}
		wantReadable(t, "POST "+path, resp)
		resp, _ = call(t, "OPTIONS", url+path, "", browser)
		if resp.StatusCode != 204 {
			t.Errorf("OPTIONS %s: %d", path, resp.StatusCode)
		}
		wantReadable(t, "OPTIONS "+path, resp)
	}
	reader := map[string]string{"Authorization": "Bearer key"}
	for _, path := range []string{"//api/2.0/export", "/api//2.0/export/", "/api/2.0/export//"} {
		if resp, body := call(t, "GET", url+path+"?project_id=1&from_date=2026-03-31&to_date=2026-03-31", "", reader); resp.StatusCode != 200 || body == "" {
			t.Errorf("GET %s: %d %v %s", path, resp.StatusCode, resp.Header, body)
		}
	}
	if resp, body := call(t, "POST", url+"//api/app/validate-project-credentials//", `{"project_token":"tok"}`, nil); resp.StatusCode != 200 {
		t.Errorf("the check of credentials: %d %s", resp.StatusCode, body)
	}
	if resp, body := call(t, "GET", url+"//v1//projects/1", "", reader); resp.StatusCode != 200 {
		t.Errorf("REST: %d %s", resp.StatusCode, body)
	}
}

func TestABrowserCanReadThatAPathDoesNotExist(t *testing.T) {
	url := serve(t, &services{}, gateway.Config{})
	for _, path := range []string{"/TRACK", "/nope", "/track/nope", "//TRACK/", "/record/", "/flags/", "/api/nope", "/Track/"} {
		for _, method := range []string{"GET", "POST"} {
			resp, _ := call(t, method, url+path, "", browser)
			if resp.StatusCode != 404 {
				t.Errorf("%s %s: %d", method, path, resp.StatusCode)
			}
			wantReadable(t, method+" "+path, resp)
		}
		resp, _ := call(t, "OPTIONS", url+path, "", browser)
		if resp.StatusCode != 204 {
			t.Errorf("OPTIONS %s: %d", path, resp.StatusCode)
		}
		wantReadable(t, "OPTIONS "+path, resp)
	}
	// What a person's credential opens is for the pages of this server alone.
	for _, path := range []string{"/v1/projects/1", "//v1/projects/1", "/v1/nope", "/api/2.0/export", "/docs/", "/openapi.json"} {
		if resp, _ := call(t, "GET", url+path, "", browser); resp.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s is open to pages of other sites: %d %v", path, resp.StatusCode, resp.Header)
		}
	}
	if resp, _ := call(t, "POST", url+"/healthz", "", nil); resp.StatusCode != 405 {
		t.Errorf("another method: %d", resp.StatusCode)
	}
}
