package clevertap_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "QAE-AWB-AAAL"

// script answers each call with status and body, and keeps what it was asked.
func script(t *testing.T, status int, body string) (*clevertap.Client, clevertap.Account, *[]*http.Request, *[]string) {
	t.Helper()
	var reqs []*http.Request
	var bodies []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		reqs, bodies = append(reqs, r), append(bodies, string(b))
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	c := clevertap.New(clevertap.Options{Timeout: 2 * time.Second, AllowPrivate: true})
	t.Cleanup(func() { c.Close(); srv.Close() })
	return c, clevertap.Account{ID: "W6W-797-865Z", Passcode: secret, BaseURL: srv.URL, PartnerURL: srv.URL + "/p", AdminEmail: "admin@example.org"}, &reqs, &bodies
}

func class(t *testing.T, err error) *clevertap.Error {
	t.Helper()
	var e *clevertap.Error
	require.ErrorAs(t, err, &e)
	require.NotContains(t, e.Error(), secret)
	return e
}

func TestConnectSucceedsOnlyOnAnExplicitSuccess(t *testing.T) {
	for body, ok := range map[string]bool{
		`{ "status" : "success" , "code":"200"}`: true, `{"status":"fail","error":"no","code":"401"}`: false,
		``: false, `<html>`: false, `{}`: false, `[1]`: false,
	} {
		c, a, reqs, _ := script(t, 200, body)
		err := c.Connect(t.Context(), a, "cohort bridge")
		require.Equal(t, ok, err == nil, body)
		r := (*reqs)[0]
		require.Equal(t, "/v1/connect?partner=cohort+bridge", r.URL.String())
		require.Equal(t, "W6W-797-865Z", r.Header.Get("X-CleverTap-Account-Id"))
		require.Equal(t, secret, r.Header.Get("X-CleverTap-Passcode"))
	}
}

func TestStatusesAreClassifiedByWhatToDo(t *testing.T) {
	for status, want := range map[int]clevertap.Class{
		400: clevertap.Refused, 401: clevertap.Refused, 403: clevertap.Refused, 404: clevertap.Refused, 405: clevertap.Refused, 302: clevertap.Refused,
		408: clevertap.Throttled, 429: clevertap.Throttled, 500: clevertap.Transient, 502: clevertap.Transient, 503: clevertap.Transient, 504: clevertap.Transient,
	} {
		c, a, _, _ := script(t, status, `{"status":"fail","error":"Invalid Credentials for `+secret+` and someone@example.org","code":`+"401"+`}`)
		_, err := c.Upload(t.Context(), a, [][]byte{[]byte(`{}`)})
		e := class(t, err)
		require.Equal(t, want, e.Class, status)
		if status != 302 {
			require.Contains(t, e.Error(), "Invalid Credentials", "the reason is CleverTap's")
		}
		require.NotContains(t, e.Error(), "someone@example.org")
	}
}

func TestRefusedRecordsAreFoundByTheirNumberNotByTheEcho(t *testing.T) {
	c, a, _, bodies := script(t, 200, `{"status":"partial","processed":1,"unprocessed":[
		{"status":"fail","code":515,"error":"Profile data is incorrect. Email is not valid. Skipped record number : 3","record":{"identity":"0"}},
		{"status":"fail","code":"555","error":"Something broke.Skipped record number :1","record":{}}]}`)
	got, err := c.Upload(t.Context(), a, [][]byte{[]byte(`{"a":1}`), []byte(`{"a":2}`), []byte(`{"a":3}`)})
	require.NoError(t, err)
	require.Len(t, got, 2)
	require.Equal(t, 2, got[0].Index)
	require.Equal(t, 515, got[0].Code)
	require.False(t, got[0].Retryable())
	require.Equal(t, 0, got[1].Index)
	require.True(t, got[1].Retryable())
	require.JSONEq(t, `{"d":[{"a":1},{"a":2},{"a":3}]}`, (*bodies)[0])
}

func TestAnswersThatNameNoRecordMeanNothingWasStored(t *testing.T) {
	for body, want := range map[string]clevertap.Class{
		`{"status":"fail","processed":0,"unprocessed":[]}`:                                                    clevertap.Transient,
		`{"status":"partial","processed":0,"unprocessed":[{"code":523,"error":"no number"}]}`:                 clevertap.Transient,
		`{"status":"partial","processed":0,"unprocessed":[{"code":523,"error":"Skipped record number : 9"}]}`: clevertap.Transient,
		`{"status":"weird"}`: clevertap.Refused, ``: clevertap.Refused,
	} {
		c, a, _, _ := script(t, 200, body)
		_, err := c.Upload(t.Context(), a, [][]byte{[]byte(`{}`)})
		require.Equal(t, want, class(t, err).Class, body)
	}
}

func TestPageCarriesMixpanelsMessageAndFailureInTheBodyCounts(t *testing.T) {
	c, a, _, bodies := script(t, 200, `{"action":"add_members","status":"success"}`)
	p := clevertap.Page{Action: "add_members", ProjectID: "7", CohortID: "42", CohortName: `La"psed`, SessionID: "s-1", Page: 1, Pages: 2, Members: [][]byte{[]byte(`{"mixpanel_distinct_id":"u1"}`), []byte(`{"mixpanel_distinct_id":"u2"}`)}}
	require.NoError(t, c.SendPage(t.Context(), a, p))
	require.JSONEq(t, `{"action":"add_members","parameters":{"mixpanel_project_id":"7","mixpanel_cohort_id":"42","mixpanel_cohort_name":"La\"psed","mixpanel_cohort_description":"",
		"mixpanel_session_id":"s-1","page_info":{"total_pages":2,"page_count":1},"members":[{"mixpanel_distinct_id":"u1"},{"mixpanel_distinct_id":"u2"}]}}`, (*bodies)[0])
	p.Members = nil
	require.NoError(t, c.SendPage(t.Context(), a, p))
	require.True(t, json.Valid([]byte((*bodies)[1])))
	for body, want := range map[string]clevertap.Class{
		`{"action":"add_members","status":"failure","error":{"message":"busy","code":429}}`:  clevertap.Throttled,
		`{"action":"add_members","status":"failure","error":{"message":"bad","code":"503"}}`: clevertap.Transient,
		`{"action":"add_members","status":"failure","error":{"message":"key","code":401}}`:   clevertap.Refused,
		`{"action":"members","status":"success"}`:                                            clevertap.Refused, `ok`: clevertap.Refused,
	} {
		c, a, _, _ := script(t, 200, body)
		require.Equal(t, want, class(t, c.SendPage(t.Context(), a, p)).Class, body)
	}
}

func TestCustomListsBadAdminIsNotBadCredentials(t *testing.T) {
	c, a, _, bodies := script(t, 401, `{"error":"Email id is either not in the right format or does not belong to a valid admin","status":"fail","code":401}`)
	_, err := c.CompleteList(t.Context(), a, clevertap.List{Name: "n", Filename: "f.csv", Creator: "c", URL: "http://x"})
	require.Equal(t, clevertap.BadEmail, class(t, err).Class)
	require.Contains(t, (*bodies)[0], `"replace":true`)
	c, a, _, _ = script(t, 200, `{"Segment ID":1234,"status":"success","code":200}`)
	id, err := c.CompleteList(t.Context(), a, clevertap.List{})
	require.NoError(t, err)
	require.EqualValues(t, 1234, id)
	c, a, _, _ = script(t, 200, `{"status":"fail","error":"URL not generated, Please come back later"}`)
	_, err = c.ListUploadURL(t.Context(), a)
	require.Equal(t, clevertap.Transient, class(t, err).Class)
}

func TestListFileIsPutWithItsLengthAndWithoutCredentials(t *testing.T) {
	c, a, reqs, bodies := script(t, 200, "")
	require.NoError(t, c.PutList(t.Context(), a.BaseURL+"/s3?sig=x", strings.NewReader("Type,Identity\n"), 14, ""))
	r := (*reqs)[0]
	require.EqualValues(t, 14, r.ContentLength)
	require.Empty(t, r.Header.Get("X-CleverTap-Passcode"))
	require.Empty(t, r.Header.Get("Content-Type"))
	require.Equal(t, "Type,Identity\n", (*bodies)[0])
	c, a, _, _ = script(t, 403, "<Error/>")
	require.Equal(t, clevertap.StaleURL, class(t, c.PutList(t.Context(), a.BaseURL, strings.NewReader(""), 0, "")).Class)
}

func TestNoAnswerIsTransientAndSaysWhetherTheCallMayHaveWorked(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer srv.Close()
	c := clevertap.New(clevertap.Options{Timeout: 50 * time.Millisecond, AllowPrivate: true})
	defer c.Close()
	_, err := c.Upload(context.Background(), clevertap.Account{BaseURL: srv.URL}, [][]byte{[]byte(`{}`)})
	e := class(t, err)
	require.Equal(t, clevertap.Transient, e.Class)
	require.True(t, e.Unanswered)
	_, err = c.Upload(context.Background(), clevertap.Account{BaseURL: "http://127.0.0.1:1"}, [][]byte{[]byte(`{}`)})
	require.False(t, class(t, err).Unanswered, "a refused connection had no effect")
}

func TestPrivateAddressesAreRefusedUnlessAllowed(t *testing.T) {
	c := clevertap.New(clevertap.Options{})
	defer c.Close()
	for _, base := range []string{"http://127.0.0.1:9", "http://[::1]:9", "http://169.254.169.254", "http://10.0.0.1", "http://localhost:9"} {
		e := class(t, c.Connect(t.Context(), clevertap.Account{BaseURL: base}, "x"))
		require.Equal(t, clevertap.Refused, e.Class, base)
		require.Contains(t, e.Message, "private", base)
	}
}

func TestOnlyCallableURLsAreTaken(t *testing.T) {
	got, err := clevertap.CheckURL("clevertap.host_url", "http://127.0.0.1:8085/")
	require.NoError(t, err)
	require.Equal(t, "http://127.0.0.1:8085", got)
	for _, bad := range []string{"", "ftp://x", "x", "https://", "https://user:pass@x", "https://x#y"} {
		_, err := clevertap.CheckURL("clevertap.host_url", bad)
		require.Equal(t, fault.Invalid, fault.CodeOf(err), bad)
	}
}

func TestSegmentIsMadeByItsKeyAndARepeatIsNoError(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		body   string
		want   string // words of the failure, empty for none
		class  clevertap.Class
	}{
		"id":                      {200, `{"status":"success","id":1739791829}`, "", 0},
		"segment_id as text":      {201, `{"segment_id":"1739791829"}`, "", 0},
		"ct_segment_id, an array": {200, `[{"ct_segment_id":1739791829,"customer_segment_id":"k"}]`, "", 0},
		"wrapped":                 {200, `{"data":{"segments":[{"id":1}]},"status":"success"}`, "", 0},
		"taken, by status":        {409, `{"status":"fail","error":"conflict","code":409}`, "", 0},
		"taken, by words":         {400, `{"status":"fail","error":"Duplicate customer_segment_id","code":400}`, "", 0},
		"taken, with 200":         {200, `{"status":"fail","error":"Segment already exists"}`, "", 0},
		"taken, in the array":     {200, `[{"customer_segment_id":"k","status":"fail","error":"already exists"}]`, "", 0},
		"failed with 200":         {200, `{"status":"fail","error":"not enabled for this account","code":403}`, "not enabled", clevertap.Refused},
		"failed without a code":   {200, `{"status":"fail","error":"try later"}`, "try later", clevertap.Transient},
		"failed inside":           {200, `{"status":"partial","segments":[{"status":"fail","error":"bad name","code":400}]}`, "bad name", clevertap.Refused},
		"refused":                 {401, `{"status":"fail","error":"Invalid Credentials","code":401}`, "Invalid Credentials", clevertap.Refused},
		"refused, with a trap":    {401, `{"status":"fail","error":"duplicate passcode","code":401}`, "duplicate", clevertap.Refused},
		"busy":                    {429, `{"status":"fail","error":"Too many concurrent requests","code":429}`, "Too many", clevertap.Throttled},
		"empty":                   {200, ``, "not CleverTap's JSON", clevertap.Refused},
		"text":                    {200, `"ok"`, "not CleverTap's JSON", clevertap.Refused},
		"HTML":                    {200, `<html></html>`, "not CleverTap's JSON", clevertap.Refused},
	} {
		c, a, reqs, bodies := script(t, tc.status, tc.body)
		err := c.CreateSegment(t.Context(), a, "cohortbridge_7_42", `La"psed`)
		require.JSONEq(t, `[{"segment_name":"La\"psed","customer_segment_id":"cohortbridge_7_42"}]`, (*bodies)[0])
		require.Equal(t, "/api/createSegment", (*reqs)[0].URL.Path, "no version before the path")
		if tc.want == "" {
			require.NoError(t, err, name)
			continue
		}
		e := class(t, err)
		require.Equal(t, tc.class, e.Class, name)
		require.Contains(t, e.Error(), tc.want, name)
	}
}

func TestSegmentUpdateNamesUsersAndTheKeyAndReadsTheBody(t *testing.T) {
	users := [][]byte{[]byte(`{"identity":"a"}`), []byte(`{"identity":"b"}`)}
	c, a, reqs, bodies := script(t, 200, `{"status":"success"}`)
	require.NoError(t, c.UpdateSegment(t.Context(), a, "k_1", false, users))
	require.NoError(t, c.UpdateSegment(t.Context(), a, "k_1", true, users[:1]))
	require.Equal(t, "/api/updateSegment", (*reqs)[0].URL.Path)
	require.JSONEq(t, `{"bulk_profiles":[{"user_profiles":[{"identity":"a"},{"identity":"b"}],"segments":[{"customer_segment_id":"k_1","action":"ADD"}]}]}`, (*bodies)[0])
	require.JSONEq(t, `{"bulk_profiles":[{"user_profiles":[{"identity":"a"}],"segments":[{"customer_segment_id":"k_1","action":"REMOVE"}]}]}`, (*bodies)[1])
	for body, want := range map[string]clevertap.Class{
		`{"status":"fail","error":"segment was deleted","code":400}`: clevertap.Refused,
		`{"status":"fail","error":"busy","code":"429"}`:              clevertap.Throttled,
		`{"status":"fail","error":"down","code":503}`:                clevertap.Transient,
		`{"status":"fail"}`: clevertap.Transient,
		``:                  clevertap.Refused,
	} {
		c, a, _, _ := script(t, 200, body)
		require.Equal(t, want, class(t, c.UpdateSegment(t.Context(), a, "k_1", false, users)).Class, body)
	}
	// "partial" is no failure: some were taken, and nobody says which.
	c, a, _, _ = script(t, 200, `{"status":"partial"}`)
	require.NoError(t, c.UpdateSegment(t.Context(), a, "k_1", false, users))
}

func TestUploadThatFailsAsAWholeIsReadByItsCode(t *testing.T) {
	for body, want := range map[string]clevertap.Class{
		`{"status":"fail","error":"Invalid Credentials","code":401}`:               clevertap.Refused,
		`{"status":"fail","error":"later","code":503,"unprocessed":[]}`:            clevertap.Transient,
		`{"status":"fail","error":"Too many concurrent requests","code":429}`:      clevertap.Throttled,
		`{"status":"fail","processed":0,"unprocessed":[],"error":"what happened"}`: clevertap.Transient,
	} {
		c, a, _, _ := script(t, 200, body)
		_, err := c.Upload(t.Context(), a, [][]byte{[]byte(`{}`)})
		require.Equal(t, want, class(t, err).Class, body)
	}
}

func TestPageFailureIsReadAlsoInCleverTapsOwnForm(t *testing.T) {
	c, a, _, _ := script(t, 200, `{"status":"fail","error":"Invalid Credentials","code":401}`)
	e := class(t, c.SendPage(t.Context(), a, clevertap.Page{Action: "members"}))
	require.Equal(t, clevertap.Refused, e.Class)
	require.Contains(t, e.Error(), "Invalid Credentials")
	require.Equal(t, 401, e.Code)
}

// A redirect could lead a call with the passcode to another host, or into our own network.
func TestRedirectsAreNotFollowed(t *testing.T) {
	reached := false
	inner := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer inner.Close()
	srv := httptest.NewServer(http.RedirectHandler(inner.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	c := clevertap.New(clevertap.Options{Timeout: 2 * time.Second, AllowPrivate: true})
	defer c.Close()
	a := clevertap.Account{ID: "A", Passcode: secret, BaseURL: srv.URL, PartnerURL: srv.URL}
	for name, call := range map[string]func() error{
		"connect": func() error { return c.Connect(t.Context(), a, "x") },
		"upload":  func() error { _, err := c.Upload(t.Context(), a, [][]byte{[]byte(`{}`)}); return err },
		"page":    func() error { return c.SendPage(t.Context(), a, clevertap.Page{Action: "members"}) },
		"create":  func() error { return c.CreateSegment(t.Context(), a, "k", "n") },
		"update":  func() error { return c.UpdateSegment(t.Context(), a, "k", false, nil) },
		"put":     func() error { return c.PutList(t.Context(), srv.URL, strings.NewReader(""), 0, "") },
	} {
		e := class(t, call())
		require.Equal(t, clevertap.Refused, e.Class, name)
		require.Contains(t, e.Error(), "redirect", name)
	}
	require.False(t, reached)
}
