package server

// What the tests in package server_test look into.
var (
	RenewCertificate = (*Hub).renewCertificate // as of a given time
	NewAccount       = newAccount
	Refused          = (*account).refused
	AccountOf        = (*account).of
)
