package gateway

import (
	"encoding/json"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// maxCredentialBytes bounds the body of a credential check.
const maxCredentialBytes = 16 << 10

// validateRoute serves the check that event senders make when somebody connects
// them: Segment posts {"project_token", "api_secret"} without a Content-Type of
// JSON and looks at the status, Jitsu at "status" and "error".
func validateRoute(mux *http.ServeMux, client ingestionv1.IngestionServiceClient) {
	check := func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Token  string `json:"project_token"`
			Secret string `json:"api_secret"`
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCredentialBytes)).Decode(&in); err != nil {
			if code, text := bodyProblem(err); code == http.StatusServiceUnavailable {
				w.Header().Set("Retry-After", "1")
				appAnswer(w, code, text)
				return
			}
			appAnswer(w, http.StatusBadRequest, "the body must be a JSON object with project_token and api_secret")
			return
		}
		_, err := client.ValidateProjectCredentials(r.Context(), &ingestionv1.ValidateProjectCredentialsRequest{ProjectToken: in.Token, ApiSecret: in.Secret})
		switch status.Code(err) {
		case codes.OK:
			appAnswer(w, http.StatusOK, "")
		case codes.Unauthenticated, codes.InvalidArgument: // an empty or overlong one is a wrong one
			appAnswer(w, http.StatusUnauthorized, "Invalid credentials")
		case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Canceled:
			w.Header().Set("Retry-After", "1")
			appAnswer(w, http.StatusServiceUnavailable, "the credentials can't be checked now; retry")
		default:
			appAnswer(w, http.StatusInternalServerError, status.Convert(err).Message())
		}
	}
	mux.HandleFunc("POST /api/app/validate-project-credentials", check)
	mux.HandleFunc("POST /api/app/validate-project-credentials/{$}", check)
}

// appAnswer answers in the form of Mixpanel's app API: {"status":"ok"}, or
// {"error":"…","status":"error"}.
func appAnswer(w http.ResponseWriter, code int, problem string) {
	out := map[string]string{"status": "ok"}
	if problem != "" {
		out = map[string]string{"status": "error", "error": problem}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(out) // the client went away
}
